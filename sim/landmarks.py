"""Landmarks: positions of objects and fixtures, the privileged targets of the auxiliary losses in train/qtopt.py.

Shapes: `L` landmarks, the objects and then the fixtures; `P` = L + 1 image points, the last between the fingertips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.camera_geometry import CameraSpec, project
from sim.objects import OBJECTS
from sim.rotations import rotate
from sim.state import OBJECT_NAMES, F, O, SceneState
from sim.tasks import TASKS

LANDMARKS = O + F
POINTS = LANDMARKS + 1
LANDMARK_SIZE = 6
PRESENCE = 5  # index in a landmark
OFFSET_UNIT_M = 0.05
MAX_OFFSET = 8.0  # in those units
ANGLE_SCALE = 2.0  # weight of an error of the angle relative to one of the offset
OWN_LANDMARK = tuple(task.target + (O if task.skill == "place" else 0) for task in TASKS.values())  # per task


@dataclass(frozen=True)
class Landmarks:
    """Landmarks of a scene, in space and in the image.

    `value` [..., L, 6]: the offset from the gripper in units of `OFFSET_UNIT_M`, then cosine and sine, times
    `ANGLE_SCALE`, of twice the angle between the object's long axis and the fingers (a half turn looks the same),
    scaled down as the axis tilts out of the horizontal, then presence, 1. Absent objects are 0, so they add nothing to
    a weighted mean. Without presence, an object that stands between the fingertips would be 0 too. A wrong presence
    costs as much as an offset wrong by 5 cm, since nothing else distinguishes the two there; elsewhere the offset does.
    `point` [..., P, 2]: image coordinates, as fractions of the frame's side. `point_present` [..., P]: False if absent.
    """

    value: NDArray[np.float32]
    point: NDArray[np.float32]
    point_present: NDArray[np.bool_]


def landmarks(state: SceneState) -> Landmarks:
    """Computes the landmarks of states with any leading dimensions."""
    tip = state["gripper_position"][..., None, :]
    position = np.concatenate([state["object_position"], state["fixture_position"]], axis=-2)
    offset = np.clip((position - tip) / OFFSET_UNIT_M, -MAX_OFFSET, MAX_OFFSET)  # objects may roll off the table
    angle = np.zeros((*offset.shape[:-1], 2), np.float32)
    angle[..., :O, :] = ANGLE_SCALE * _doubled_angle(state)
    present = np.concatenate([state["object_present"], state["fixture_present"]], axis=-1) > 0
    points = np.concatenate([position, tip], axis=-2)
    point = project(points, state["camera_position"], state["camera_axes"], CameraSpec())
    return Landmarks(
        value=(np.concatenate([offset, angle, np.ones_like(offset[..., :1])], axis=-1) * present[..., None]).astype(
            np.float32
        ),
        point=point,
        point_present=np.concatenate([present, np.ones_like(present[..., :1])], axis=-1),
    )


def _doubled_angle(state: SceneState) -> NDArray[np.floating]:
    """Cosine and sine [..., O, 2] of twice the angle between long axis and fingers."""
    axes = np.array([OBJECTS[name].long_axis for name in OBJECT_NAMES], np.float32)
    axes = rotate(state["object_orientation"], axes)
    fingers = rotate(state["gripper_orientation"], np.array([0.0, 1.0, 0.0], np.float32))
    doubled = (axes[..., 0] + 1j * axes[..., 1]) ** 2
    doubled = doubled * np.conj((fingers[..., 0] + 1j * fingers[..., 1]) ** 2)[..., None]
    return np.stack([doubled.real, doubled.imag], axis=-1)
