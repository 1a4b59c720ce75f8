"""The interface of the renderers: bodies to render, depth and segmentation images, and the overlap of the latter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.camera_geometry import CameraSpec
from sim.materials import Material
from sim.state import FIXTURE_NAMES, OBJECT_NAMES

RENDERERS = ("auto", "tiny", "egl")
TABLE = "table"
SEGMENTS = ("background", TABLE, "robot", *OBJECT_NAMES, *FIXTURE_NAMES)  # index: value in a segmentation image


@dataclass(frozen=True, kw_only=True)
class RenderBody:
    """One body to render: PyBullet's `uid` and `link` (-1: base), the `name` of its mesh, its materials and tint."""

    name: str
    segment: str
    uid: int
    link: int = -1
    scale: float = 1.0
    materials: tuple[Material, ...] = ()
    tint: tuple[float, ...] = (1.0, 1.0, 1.0)
    gloss: float = 0.0


def segment_of(body: RenderBody) -> int:
    return SEGMENTS.index(body.segment)


def overlaps(one: NDArray[np.uint8], other: NDArray[np.uint8], larger_than_px: int) -> list[float]:
    """IoU of each segment of two segmentation images that is larger than this in either."""
    ious = []
    for value in range(len(SEGMENTS)):
        a, b = one == value, other == value
        if max(a.sum(), b.sum()) > larger_than_px:
            ious.append(float((a & b).sum() / (a | b).sum()))
    return ious


@dataclass(frozen=True)
class Geometry:
    """Depth and segmentation images. `depth_m` float32 [H, W], along the optical axis (background: the far plane);
    `segmentation` uint8 [H, W], indices into `SEGMENTS`."""

    depth_m: NDArray[np.float32]
    segmentation: NDArray[np.uint8]

    @classmethod
    def from_buffer(cls, buffer: NDArray[np.floating], segmentation: NDArray[np.uint8], camera: CameraSpec) -> Geometry:
        """Converts an OpenGL depth buffer, 0 at the near and 1 at the far plane, to metres."""
        near, far = camera.near_m, camera.far_m
        depth = near * far / (far - np.asarray(buffer, np.float64) * (far - near))
        return cls(np.minimum(depth, far).astype(np.float32), segmentation)
