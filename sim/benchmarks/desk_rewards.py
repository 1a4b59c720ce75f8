"""Success and rewards of the desk's tasks, as pure functions of the quantities of a step.

Success is Meta-World's (3.1) in terms of the door's or drawer's joint; the reward is 1 while it holds. The shaped
rewards, by which online learners find it, are Meta-World's of version 2, in [0, 10]. Quantities and actions have any
leading dimensions [...]; so have successes and rewards.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sim.benchmarks.spec import Quantities

Array = NDArray[np.float32]
DOOR, DRAWER, HAND, FINGERTIPS = "door_rad", "drawer_m", "hand_m", "fingertips_m"
DOOR_PLACE, DRAWER_PLACE = "door_place_m", "drawer_place_m"
OPEN_DOOR_RAD, OPEN_DRAWER_M = -np.pi / 2, -0.15  # where the tasks that close them begin; closed is 0
HAND_START_M, FAR_HAND_START_M = (0.0, 0.6, 0.2), (-0.5, 0.6, 0.2)  # the far one of door-close
FINGERTIPS_START_M = (0.0043, 0.6015, 0.1502)  # of the settled hand
HINGE_M, DOOR_HANDLE_M = (
    (-0.185, -0.1),
    (0.3757, -0.1071),
)  # from the door's place, and from the hinge where it is closed
DRAWER_HANDLE_M = (0.0, -0.17, 0.09)  # from the drawer's place where it is closed


# ---------------------------------------------------------------- success


def door_is_open(q: Quantities) -> NDArray[np.bool_]:
    """The handle's x is within 8 cm of its target's, on either side."""
    return np.asarray((q[DOOR] >= -1.815) & (q[DOOR] <= -1.383))


def door_is_closed(q: Quantities) -> NDArray[np.bool_]:
    """The handle is within 8 cm of its target."""
    return np.asarray(q[DOOR] >= -0.178)


def drawer_is_open(q: Quantities) -> NDArray[np.bool_]:
    """The handle is within 3 cm of its target: where the joint's range ends."""
    return np.asarray(q[DRAWER] <= -0.16)


def drawer_is_closed(q: Quantities) -> NDArray[np.bool_]:
    """The handle is within 6.5 cm of its target, which lies 5 cm below it."""
    return np.asarray(q[DRAWER] >= -0.03153)


# ---------------------------------------------------------------- shaped rewards


def long_tail(distance: NDArray[np.floating], bound: float, margin: NDArray[np.floating] | float) -> Array:
    """1 up to the bound, 0.1 at a margin beyond it, falling off by the square (dm_control's tolerance)."""
    beyond = np.maximum(0, distance - bound) / margin
    return np.asarray(1 / (9 * np.square(beyond) + 1), np.float32)


def gaussian(distance: NDArray[np.floating], bound: float, margin: NDArray[np.floating] | float) -> Array:
    """1 up to the bound, 0.1 at a margin beyond it, falling off as a Gaussian (dm_control's tolerance)."""
    beyond = np.maximum(0, distance - bound) / margin
    return np.asarray(np.exp(np.log(0.1) * np.square(beyond)), np.float32)


def hamacher_product(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
    """Hamacher's product of numbers in [0, 1]; 0 of two zeros."""
    found: NDArray[np.floating] = a * b / np.maximum(a + b - a * b, 1e-12)
    return found


def door_handle(q: Quantities) -> NDArray[np.floating]:
    """Place of the door's handle, m: [..., 3]."""
    cos, sin = np.cos(q[DOOR]), np.sin(q[DOOR])
    x, y = DOOR_HANDLE_M
    offset = [HINGE_M[0] + cos * x - sin * y, HINGE_M[1] + sin * x + cos * y, np.zeros_like(cos)]
    return np.asarray(q[DOOR_PLACE] + np.stack(offset, axis=-1))


def drawer_handle(q: Quantities) -> NDArray[np.floating]:
    """Place of the drawer's handle, m: [..., 3]."""
    zero = np.zeros_like(q[DRAWER])
    return np.asarray(q[DRAWER_PLACE] + DRAWER_HANDLE_M + np.stack([zero, q[DRAWER], zero], axis=-1))


def shaped_door_open(q: Quantities, action: Array) -> Array:
    handle = door_handle(q) - (0.05, 0.0, 0.0)
    radius = _norm((q[HAND] - handle)[..., :2])
    floor = np.where(radius > 0.12, 0.04 * np.log(np.maximum(radius - 0.12, 1e-9)) + 0.4, 0.0)
    below = floor - q[HAND][..., 2]  # of a funnel that keeps the hand from running into the handle
    above = np.where(below <= 0, 1.0, long_tail(below, 0.01, np.maximum(floor, 1e-9) / 2))
    ready = hamacher_product(above, long_tail(_norm(q[HAND] - handle - (0.05, 0.03, -0.01)), 0.06, 0.5))
    opened = 0.2 * (q[DOOR] < -np.pi / 90) + 0.8 * long_tail(2 * np.pi / 3 + q[DOOR], 0.5, np.pi / 3)
    closing = (np.clip(action[..., 3], -1, 1) + 1) / 2
    return _or_ten(door_is_open(q), 2 * hamacher_product(ready, closing) + 8 * opened)


def shaped_door_close(q: Quantities, action: Array) -> Array:
    handle, target = door_handle(q), q[DOOR_PLACE] + (0.2, -0.2, 0.0)
    away = _norm(handle - target)
    margin = _norm(np.asarray(FAR_HAND_START_M) - handle) + 0.1
    hand = gaussian(_norm(q[FINGERTIPS] - target), 0.0125, margin)
    return _or_ten(away < 0.05, 3 * hand + 6 * gaussian(away, 0.05, 0.2 * np.sqrt(2)))


def shaped_drawer_open(q: Quantities, action: Array) -> Array:
    handle, scale = drawer_handle(q), np.array([3.0, 3.0, 1.0])
    target = q[DRAWER_PLACE] + (0.0, -0.36, 0.09)
    first = _norm((target + (0.0, 0.2, 0.0) - FINGERTIPS_START_M) * scale)
    hand = long_tail(_norm((handle - q[HAND]) * scale), 0.01, first)
    return np.asarray(5 * (hand + long_tail(_norm(handle - target), 0.02, 0.2)), np.float32)


def shaped_drawer_close(q: Quantities, action: Array) -> Array:
    grip = drawer_handle(q) + (0.0, 0.0, 0.05)
    target = q[DRAWER_PLACE] + (0.0, -0.16, 0.09)
    first = q[DRAWER_PLACE] + DRAWER_HANDLE_M + (0.0, OPEN_DRAWER_M, 0.05)
    away = _norm(grip - target)
    pushed = long_tail(away, 0.05, np.abs(_norm(first - target) - 0.05))
    reach = gaussian(_norm(grip - q[FINGERTIPS]), 0.005, np.abs(_norm(first - np.asarray(FINGERTIPS_START_M)) - 0.005))
    return _or_ten(
        drawer_is_closed(q), 10 * hamacher_product(hamacher_product(reach, np.clip(action[..., 3], 0, 1)), pushed)
    )


def sparse(success: Callable[[Quantities], NDArray[np.bool_]], q: Quantities, action: Array) -> Array:
    return success(q).astype(np.float32)


def _norm(vector: NDArray[np.floating]) -> NDArray[np.floating]:
    found: NDArray[np.floating] = np.linalg.norm(vector, axis=-1)
    return found


def _or_ten(success: NDArray[np.bool_], reward: NDArray[np.floating]) -> Array:
    return np.where(success, 10.0, reward).astype(np.float32)
