"""One Lightning module per algorithm, typed configs, presets and the training command."""

import os

# Read once, when torch is imported: idle threads of its CPU pool sleep instead of spinning. Beside a loader process, or
# anything else on the same cores, spinning costs up to 15 times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
