"""Rotations as unit quaternions x, y, z, w: arrays [..., 4]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rotate(quaternion: NDArray[np.floating], vector: NDArray[np.floating]) -> NDArray[np.floating]:
    """Rotates vectors [..., 3] by unit quaternions [..., 4]."""
    axis, w = quaternion[..., :3], quaternion[..., 3:]
    return vector + 2 * np.cross(axis, np.cross(axis, vector) + w * vector)


def multiply(second: NDArray[np.floating], first: NDArray[np.floating]) -> NDArray[np.float64]:
    """Quaternion product [4]: the rotation by `first`, then by `second`."""
    a, b = second, first
    vector = a[3] * b[:3] + b[3] * a[:3] + np.cross(a[:3], b[:3])
    return np.array([*vector, a[3] * b[3] - a[:3] @ b[:3]])


def euler_quaternion(roll: float, pitch: float, yaw: float) -> NDArray[np.float64]:
    """Quaternion [4] of fixed-axis Euler angles (rad): about x, then y, then z of the world."""
    (sr, sp, sy), (cr, cp, cy) = np.sin([roll / 2, pitch / 2, yaw / 2]), np.cos([roll / 2, pitch / 2, yaw / 2])
    return np.array(
        [
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
            cr * cp * cy + sr * sp * sy,
        ]
    )
