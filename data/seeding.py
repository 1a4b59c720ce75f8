"""Seeds derived from numbers such as (run seed, step, purpose), so that a resumed run draws the same numbers."""

from __future__ import annotations

import numpy as np


def derive_seed(*numbers: int) -> int:
    """A seed that is a function of these numbers; zeros at the end make no difference."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
