"""Purposes of the random numbers of a training, of which their seeds are made (data/seeding.py)."""

from __future__ import annotations

import enum


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
    WEIGHTS = 5  # of transitions, at the end
