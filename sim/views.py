"""Where the camera stands and where it sees things: plain geometry, for renderers and for readers of stored states."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RENDERERS = ("auto", "tiny", "egl")
SMALL_PX = (48, 128)  # what the small network sees, in steps of four pixels
QTOPT_FROM_PX = 220  # below, the last three convolutions of QT-Opt's network run out of map


def check_size(size_px: int) -> None:
    """Raises ValueError for a picture size that no network takes."""
    if not ((SMALL_PX[0] <= size_px <= SMALL_PX[1] and size_px % 4 == 0) or size_px >= QTOPT_FROM_PX):
        raise ValueError(
            f"no network sees {size_px} px: the small one takes {SMALL_PX[0]} to {SMALL_PX[1]} in steps of 4, "
            f"QT-Opt's {QTOPT_FROM_PX} and more"
        )


@dataclass(frozen=True, kw_only=True)
class CameraSpec:
    """A pinhole camera that sees a square. Its axes are right, up and backwards (OpenGL's)."""

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
        """[3, 3]: the camera's right, up and backward directions in the world, one a row."""
        back = np.subtract(self.eye_m, self.look_at_m)
        back /= np.linalg.norm(back)
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        up = np.cross(back, right)
        c, s = math.cos(self.roll_rad), math.sin(self.roll_rad)
        return np.stack([c * right + s * up, c * up - s * right, back])

    def view(self) -> NDArray[np.float64]:
        """[4, 4]: world -> camera."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.axes()
        matrix[:3, 3] = -matrix[:3, :3] @ np.array(self.eye_m)
        return matrix

    def lens(self) -> NDArray[np.float64]:
        """[4, 4]: camera -> clip space."""
        near, far = self.near_m, self.far_m
        matrix = np.zeros((4, 4))
        matrix[0, 0] = matrix[1, 1] = 1 / math.tan(math.radians(self.field_of_view_deg) / 2)
        matrix[2, 2:] = -(far + near) / (far - near), -2 * far * near / (far - near)
        matrix[3, 2] = -1
        return matrix


def project(
    points_m: NDArray[np.floating], eye_m: NDArray[np.floating], axes: NDArray[np.floating], spec: CameraSpec
) -> NDArray[np.float32]:
    """World points [..., P, 3] -> where a square frame shows them [..., P, 2]: right, down, in sides of the frame.

    `eye_m` [..., 3] and `axes` [..., 3, 3] are the camera's pose at the time; the lens is that of `spec`."""
    seen = np.einsum("...pi,...ci->...pc", points_m - eye_m[..., None, :], axes)
    depth = np.maximum(-seen[..., 2:], spec.near_m) * 2 * math.tan(math.radians(spec.field_of_view_deg) / 2)
    return (0.5 + seen[..., :2] * [1, -1] / depth).astype(np.float32)


def frame_size(crop_size: int) -> int:
    """Side of the stored frame for a network that sees `crop_size` px, as 512 is to 472: 472 -> 512, 64 -> 72."""
    return math.ceil(crop_size * 512 / 472 / 8) * 8
