"""One Lightning module per algorithm, typed configs, presets and the training command."""
