"""Seeds derived from (run seed, step, purpose), so that a resumed run draws the same numbers."""

from __future__ import annotations

import enum

import numpy as np


class RandomStream(enum.IntEnum):
    """Purposes of random numbers within a training step on images, each with a seed of its own."""

    ACTIONS = 0
    NEXT_IMAGE = 1
    IMAGE = 2
    DIAGNOSTICS = 3
    ROUTING = 4
    RESAMPLING = 5


class MemberStream(enum.IntEnum):
    """Purposes of the random numbers of members that learn from states (StateConfig.random)."""

    UPDATE = 1
    FIRST_WEIGHTS = 2
    BEHAVIOUR_UPDATE = 3  # of pi_beta_eff
    BEHAVIOUR_FIRST_WEIGHTS = 4


def derive_seed(*numbers: int) -> int:
    """A seed that is a function of these numbers; zeros at the end make no difference."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
