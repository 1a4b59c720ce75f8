"""Camera geometry: pose, view and projection matrices, and the projection of world points into the image.

Free of any renderer, so that stored states can be projected without a simulator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class CameraSpec:
    """A pinhole camera with a square image. Camera axes as in OpenGL: right, up, backwards."""

    eye_m: tuple[float, float, float] = (0.0, -0.52, 0.80)  # over the robot's right shoulder
    look_at_m: tuple[float, float, float] = (0.52, 0.0, 0.05)
    roll_rad: float = 0.0
    field_of_view_deg: float = 31.0
    near_m: float = 0.1
    far_m: float = 2.5

    def __post_init__(self) -> None:
        if np.allclose(self.eye_m[:2], self.look_at_m[:2]):
            raise ValueError(f"the camera looks straight up or down, from {self.eye_m} to {self.look_at_m}")

    def axes(self) -> NDArray[np.float64]:
        """[3, 3]: the camera's right, up and backward directions in the world frame, one per row."""
        back = np.subtract(self.eye_m, self.look_at_m)
        back /= np.linalg.norm(back)
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        up = np.cross(back, right)
        c, s = math.cos(self.roll_rad), math.sin(self.roll_rad)
        return np.stack([c * right + s * up, c * up - s * right, back])

    def view_matrix(self) -> NDArray[np.float64]:
        """[4, 4]: world -> camera coordinates."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.axes()
        matrix[:3, 3] = -matrix[:3, :3] @ np.array(self.eye_m)
        return matrix

    def projection_matrix(self) -> NDArray[np.float64]:
        """[4, 4]: camera coordinates -> clip space."""
        near, far = self.near_m, self.far_m
        matrix = np.zeros((4, 4))
        matrix[0, 0] = matrix[1, 1] = 1 / math.tan(math.radians(self.field_of_view_deg) / 2)
        matrix[2, 2:] = -(far + near) / (far - near), -2 * far * near / (far - near)
        matrix[3, 2] = -1
        return matrix


def project(
    points_m: NDArray[np.floating], eye_m: NDArray[np.floating], axes: NDArray[np.floating], spec: CameraSpec
) -> NDArray[np.float32]:
    """Projects world points [..., P, 3] (m) to image coordinates [..., P, 2]: right, down, as fractions of the side.

    `eye_m` [..., 3] and `axes` [..., 3, 3] are the camera's pose; field of view and near plane are those of `spec`."""
    in_camera = np.einsum("...pi,...ci->...pc", points_m - eye_m[..., None, :], axes)
    depth = np.maximum(-in_camera[..., 2:], spec.near_m) * 2 * math.tan(math.radians(spec.field_of_view_deg) / 2)
    return (0.5 + in_camera[..., :2] * [1, -1] / depth).astype(np.float32)
