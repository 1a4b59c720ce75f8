"""What a renderer is told of a scene's bodies, and what it tells of their geometry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.looks import Paint
from sim.state import FIXTURE_NAMES, OBJECT_NAMES
from sim.views import CameraSpec

TABLE = "table"
SEGMENTS = ("background", TABLE, "robot", *OBJECT_NAMES, *FIXTURE_NAMES)  # the values of a segmentation


@dataclass(frozen=True, kw_only=True)
class Body:
    """One thing to draw: PyBullet's `uid` and `link` (-1: the base), the `name` of its mesh, its paints and tint."""

    name: str
    segment: str
    uid: int
    link: int = -1
    scale: float = 1.0
    paints: tuple[Paint, ...] = ()
    tint: tuple[float, ...] = (1.0, 1.0, 1.0)
    gloss: float = 0.0


def segment_of(body: Body) -> int:
    return SEGMENTS.index(body.segment)


def overlaps(one: NDArray[np.uint8], other: NDArray[np.uint8], larger_than_px: int) -> list[float]:
    """The intersection over union of each segment of two segmentations that is large enough in one of them."""
    shares = []
    for value in range(len(SEGMENTS)):
        mine, theirs = one == value, other == value
        if max(mine.sum(), theirs.sum()) > larger_than_px:
            shares.append(float((mine & theirs).sum() / (mine | theirs).sum()))
    return shares


@dataclass(frozen=True)
class Geometry:
    """`depth_m` float32 [H, W], along the optical axis (the far plane where there is nothing), and `segmentation` uint8
    [H, W] with values of `SEGMENTS`."""

    depth_m: NDArray[np.float32]
    segmentation: NDArray[np.uint8]

    @classmethod
    def from_buffer(cls, buffer: NDArray[np.floating], segmentation: NDArray[np.uint8], camera: CameraSpec) -> Geometry:
        """From OpenGL's depth buffer, 0 at the near and 1 at the far plane."""
        near, far = camera.near_m, camera.far_m
        depth = near * far / (far - np.asarray(buffer, np.float64) * (far - near))
        return cls(np.minimum(depth, far).astype(np.float32), segmentation)
