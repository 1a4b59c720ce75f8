"""The action vector of the pick-place world: five numbers, the same in the simulator, on disk and in policies.

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
BOUNDS = np.array([MAX_TRANSLATION_M] * 3 + [MAX_YAW_RAD], np.float32)  # of the continuous components


def clip(action: NDArray[np.float32]) -> NDArray[np.float32]:
    """Clips an action [5] to its bounds. ValueError for a wrong shape, a non-finite number or an unknown command."""
    action = np.asarray(action, np.float32)
    if action.shape != (ACTION_SIZE,):
        raise ValueError(f"an action has {ACTION_SIZE} numbers, got shape {action.shape}")
    for index, value in enumerate(action[:4]):
        if not np.isfinite(value):
            raise ValueError(f"action[{index}] ({['x', 'y', 'z', 'yaw'][index]}) is {value}")
    if action[4] not in range(len(COMMANDS)):
        raise ValueError(f"action[4] is a command 0 to 3 ({', '.join(COMMANDS)}), got {action[4]:g}")
    return np.concatenate([np.clip(action[:4], -BOUNDS, BOUNDS), action[4:]])
