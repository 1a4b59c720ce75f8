"""What a body is made of: meshes with paints, colliders, weight, friction and looks; of an object and of a fixture.

Lengths in metres, masses in kilograms, angles in radians.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.looks import Looks
from sim.meshes import Mesh, Point
from sim.options import check_choice
from sim.rotations import euler_quaternion, rotate


@dataclass(frozen=True)
class Collider:
    """`kind` is box (size = edges), cylinder or capsule (size = radius, length along z) or hull (points)."""

    kind: str
    size: tuple[float, ...] = ()
    centre: Point = (0.0, 0.0, 0.0)
    euler: Point = (0.0, 0.0, 0.0)
    points: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        numbers = {"box": 3, "cylinder": 2, "capsule": 2, "hull": 0}
        if len(self.size) != numbers[check_choice("kind of collider", self.kind, tuple(numbers))]:
            raise ValueError(f"a {self.kind} has {numbers[self.kind]} sizes, got {self.size}")
        if (self.kind == "hull") != (self.points is not None) or not all(size > 0 for size in self.size):
            raise ValueError(f"a {self.kind} of sizes {self.size}: a hull has points, all others sizes above 0")


MAX_PARTS = 8  # of a body


@dataclass(frozen=True, kw_only=True)
class BodySpec:
    """What objects and fixtures have in common. `looks` paint the parts, in their order."""

    name: str
    mass_kg: float
    friction: float
    parts: tuple[Mesh, ...]
    colliders: tuple[Collider, ...]
    looks: Looks

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", self.name):
            raise ValueError(f"a name has small letters, digits and hyphens, got {self.name!r}")
        if not (self.mass_kg > 0 and self.friction >= 0 and self.colliders):
            raise ValueError(
                f"{self.name}: has a weight, a friction and a collider, "
                f"got {self.mass_kg} kg, {self.friction} and {len(self.colliders)} colliders"
            )
        if not 1 <= len(self.parts) <= MAX_PARTS:
            raise ValueError(f"{self.name}: a body has 1 to {MAX_PARTS} parts, got {len(self.parts)}")
        for look in (*self.looks.train, *self.looks.test):
            if not all(0 <= level <= 1 for paint in look for level in paint.colour):
                raise ValueError(f"{self.name}: colours are three numbers between 0 and 1, got {look}")
            if len(look) != len(self.parts):
                raise ValueError(
                    f"{self.name}: a look paints each of its {len(self.parts)} parts, got {len(look)} paints"
                )
        if not self.looks.train or not self.looks.test:
            raise ValueError(f"{self.name}: needs a look to train on and one that is held out")


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a thing at rest covers of the table: all within `radius_m` of a line through its centre, which runs at
    `angle_rad` and begins and ends at `line_m`."""

    angle_rad: float
    line_m: tuple[float, float]
    radius_m: float


@dataclass(frozen=True, kw_only=True)
class ObjectSpec(BodySpec):
    """A thing that can be lifted. `long_axis` is in its own frame; `rests` are the ways it can lie or stand."""

    long_axis: Point
    rests: tuple[Point, ...] = ((0.0, 0.0, 0.0),)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rests:
            raise ValueError(f"{self.name}: needs an orientation to rest in")

    @functools.cached_property
    def footprints(self) -> tuple[Footprint, ...]:
        """In each of its `rests`, at its usual size."""
        vertices = np.concatenate([part.vertices for part in self.parts])
        return tuple(_footprint(vertices, np.array(self.long_axis), euler_quaternion(*rest)) for rest in self.rests)


def stands(along: NDArray[np.floating]) -> bool:
    """Whether a thing whose long axis points along this unit vector [3] stands rather than lies."""
    return bool(abs(along[2]) > 0.7)


def _footprint(vertices: NDArray[np.float64], axis: NDArray[np.float64], turn: NDArray[np.float64]) -> Footprint:
    corners, along = rotate(turn, vertices)[:, :2], rotate(turn, axis)
    angle = float(np.arctan2(along[1], along[0]))
    lengths, widths = corners @ [np.cos(angle), np.sin(angle)], corners @ [-np.sin(angle), np.cos(angle)]
    if stands(along):
        return Footprint(angle_rad=0.0, line_m=(0.0, 0.0), radius_m=float(np.linalg.norm(corners, axis=1).max()))
    half = float(np.abs(widths).max())
    line = min(float(lengths.min()) + half, 0.0), max(float(lengths.max()) - half, 0.0)
    beyond = lengths - np.clip(lengths, *line)
    return Footprint(angle_rad=angle, line_m=line, radius_m=float(np.hypot(beyond, widths).max()))


@dataclass(frozen=True, kw_only=True)
class FixtureSpec(BodySpec):
    """A thing to place on; its origin is the centre of its base, z up. What lies within `inner_radius_m` lies on it."""

    radius_m: float
    inner_radius_m: float
    friction: float = 0.8
    sections: tuple[Point, ...] = ((0.0, 0.0, 0.0),)  # where a scripted policy puts things
