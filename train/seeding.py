"""Chance that a resumed run repeats: every use of it begins from numbers that are known again."""

from __future__ import annotations

import numpy as np


def derive_seed(*numbers: int) -> int:
    """A seed that depends on all of these, but for zeros at the end, and on nothing else."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
