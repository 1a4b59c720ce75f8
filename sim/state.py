"""SceneState: a fixed-layout vector of the scene's privileged state, stored with every step of every episode.

It holds all inputs of the success detectors, so every task's reward can be recomputed from disk without a simulator.
Leading dimensions (time, batch) are allowed everywhere; the last dimension is `STATE_SIZE`.

Shapes: `O` objects and `F` fixtures, in the order of their tables (sim/objects.py).
World frame: metres, the table top is z = 0, the robot's base is the origin, x points away from the robot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.objects import FIXTURES, OBJECTS

OBJECT_NAMES = tuple(OBJECTS)
FIXTURE_NAMES = tuple(FIXTURES)
O, F = len(OBJECT_NAMES), len(FIXTURE_NAMES)  # noqa: E741

# Name -> shape, in the order of the vector. A change of shapes or order requires a new `STATE_VERSION`.
STATE_VERSION = 2
SIM_VERSION = 6  # of physics, scenes, camera and appearances: data of another version show another world
LAYOUT: dict[str, tuple[int, ...]] = {
    "object_present": (O,),  # 0 or 1
    "object_position": (O, 3),  # m, centre of mass
    "object_orientation": (O, 4),  # quaternion x, y, z, w
    "object_velocity": (O, 3),  # m/s
    "object_angular_velocity": (O, 3),  # rad/s
    "object_bottom": (O,),  # m, height of its lowest point above the table
    "object_on_finger": (O, 2),  # 0 or 1, contact with the left and the right finger
    "object_on_arm": (O,),  # 0 or 1, contact with any other part of the robot
    "object_on_table": (O,),  # 0 or 1
    "object_on_object": (O,),  # 0 or 1, contact with any other object
    "object_on_fixture": (O, F),  # 0 or 1
    "fixture_present": (F,),  # 0 or 1
    "fixture_position": (F, 3),  # m, centre of the base
    "fixture_orientation": (F, 4),  # quaternion x, y, z, w
    "gripper_position": (3,),  # m, the point between the fingertips
    "gripper_orientation": (4,),  # quaternion x, y, z, w
    "gripper_goal": (3,),  # m, target of that point after all actions so far, delayed ones included
    "finger_width": (),  # m, gap between the fingers, 0 to 0.08
    "gripper_closed": (),  # 0 or 1, the last gripper command that was executed
    "held": (),  # index of the object that touches both fingers, -1 for none
    "camera_position": (3,),  # m
    "camera_axes": (3, 3),  # right, up and backwards, one per row
    "target": (),  # index of the task's object (lift) or fixture (place)
}
_SLICES: dict[str, slice] = {}
_start = 0
for _name, _shape in LAYOUT.items():
    _size = int(np.prod(_shape, dtype=int))
    _SLICES[_name] = slice(_start, _start + _size)
    _start += _size
STATE_SIZE = _start


@dataclass(frozen=True)
class SceneState:
    """Named views of a state vector, float32 [..., STATE_SIZE]: `state["object_position"]` is [..., O, 3]."""

    vector: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.vector.shape[-1] != STATE_SIZE:
            raise ValueError(f"a SceneState has {STATE_SIZE} numbers in its last dimension, got {self.vector.shape}")

    @classmethod
    def empty(cls) -> SceneState:
        """A state without objects or fixtures, gripper at the origin: the start of a snapshot or of a test's state."""
        state = cls(np.zeros(STATE_SIZE, np.float32))
        state["object_orientation"][..., 3] = 1.0
        state["fixture_orientation"][..., 3] = 1.0
        state["gripper_orientation"][..., 3] = 1.0
        state["held"][...] = -1.0
        return state

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self.vector[..., _SLICES[name]].reshape(self.vector.shape[:-1] + LAYOUT[name])
