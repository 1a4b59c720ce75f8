"""One Lightning module per algorithm, typed configs, presets and the training command."""

import os

# Read once, when torch is imported: idle threads of its CPU pool spin briefly, then sleep. Long spinning costs up to 15
# times where a loader or anything else shares the cores; no spinning costs a fifth where nothing does.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
