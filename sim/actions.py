"""The action of the pick-place world: a vector of five numbers, the same in the simulator, on disk and in policies.

`[..., 5]` float32: translation x, y, z (m), yaw increment (rad), command (0 none, 1 close, 2 open, 3 terminate).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_TRANSLATION_M = 0.06  # per axis and step
MAX_YAW_RAD = 0.6  # per step
NONE, CLOSE, OPEN, TERMINATE = 0, 1, 2, 3
COMMANDS = ("none", "close", "open", "terminate")
ACTION_SIZE = 5
BOUNDS = np.array([MAX_TRANSLATION_M] * 3 + [MAX_YAW_RAD], np.float32)  # of the continuous part


def clip(action: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest action inside the bounds; refuses what is not a finite vector of five with a known command."""
    action = np.asarray(action, np.float32)
    if action.shape != (ACTION_SIZE,) or not np.isfinite(action).all() or action[4] not in (0, 1, 2, 3):
        raise ValueError(f"an action is {ACTION_SIZE} finite numbers ending in a command 0 to 3, got {action!r}")
    return np.concatenate([np.clip(action[:4], -BOUNDS, BOUNDS), action[4:]])
