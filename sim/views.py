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
    eye_m: tuple[float, float, float] = (1.14, 0.0, 0.70)
    look_at_m: tuple[float, float, float] = (0.50, 0.0, 0.06)
    field_of_view_deg: float = 37.0
    near_m: float = 0.1
    far_m: float = 2.5

    def project(self, points_m: NDArray[np.floating]) -> NDArray[np.float32]:
        """World points [..., 3] (m) -> where a square frame shows them [..., 2]: right, down, in sides of the frame."""
        forward = np.subtract(self.look_at_m, self.eye_m)
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        away = points_m - np.array(self.eye_m)
        depth = np.maximum(away @ forward, self.near_m) * 2 * math.tan(math.radians(self.field_of_view_deg) / 2)
        across = np.stack([away @ right, away @ np.cross(forward, right)], axis=-1)
        return (0.5 + across / depth[..., None]).astype(np.float32)


def frame_size(crop_size: int) -> int:
    """Side of the stored frame for a network that sees `crop_size` px, as 512 is to 472: 472 -> 512, 64 -> 72."""
    return math.ceil(crop_size * 512 / 472 / 8) * 8
