"""Where things are, seen from the gripper: the privileged target of the auxiliary state prediction (train/qtopt.py)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.objects import OBJECTS
from sim.state import OBJECT_NAMES, F, O, SceneState

LANDMARKS = O + F
LANDMARK_SIZE = 5
OFFSET_UNIT_M = 0.05
MAX_OFFSET = 8.0  # in those units


def landmarks(state: SceneState) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Features [..., O + F, 5] and presence [..., O + F] of every object and fixture.

    The five: offset from the gripper in units of `OFFSET_UNIT_M`, then cosine and sine of twice the angle between the
    object's long axis and the fingers (a half turn looks the same), shrunk as the axis leaves the horizontal.
    """
    position = np.concatenate([state["object_position"], state["fixture_position"]], axis=-2)
    offset = (position - state["gripper_position"][..., None, :]) / OFFSET_UNIT_M
    offset = np.clip(offset, -MAX_OFFSET, MAX_OFFSET)  # an object may have rolled off the table
    axes = np.array([OBJECTS[name].long_axis for name in OBJECT_NAMES], np.float32)
    along = _rotate(state["object_orientation"], axes)
    fingers = _rotate(state["gripper_orientation"], np.array([0.0, 1.0, 0.0], np.float32))
    doubled = (along[..., 0] + 1j * along[..., 1]) ** 2 * np.conj((fingers[..., 0] + 1j * fingers[..., 1]) ** 2)[
        ..., None
    ]
    turn = np.zeros((*offset.shape[:-1], 2), np.float32)
    turn[..., :O, :] = np.stack([doubled.real, doubled.imag], axis=-1)
    present = np.concatenate([state["object_present"], state["fixture_present"]], axis=-1) > 0
    return np.concatenate([offset, turn], axis=-1).astype(np.float32), present


def _rotate(quaternion: NDArray[np.float32], vector: NDArray[np.float32]) -> NDArray[np.float32]:
    axis, w = quaternion[..., :3], quaternion[..., 3:]
    return vector + 2 * np.cross(axis, np.cross(axis, np.broadcast_to(vector, axis.shape)) + w * vector)
