"""Repeatable speed comparisons with named peers and measured ceilings. `python -m bench`."""
