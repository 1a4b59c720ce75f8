"""Networks, action selection, losses as pure functions, checkpoints. Never a simulator, never a dataset."""
