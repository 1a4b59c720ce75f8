"""Replay buffers on disk, collection, batches, the sharing rules and the router. Never a network class."""
