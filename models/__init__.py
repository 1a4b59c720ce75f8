"""Networks, the action maximiser, losses as pure functions, checkpoints. Never a simulator, never a dataset."""
