"""Specifications of physical bodies, objects and fixtures: meshes, colliders, mass, friction and appearances.

Lengths in metres, masses in kilograms, angles in radians.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.appearances import Appearances
from sim.meshes import Mesh, Point
from sim.options import check_choice
from sim.rotations import euler_quaternion, rotate


@dataclass(frozen=True)
class Collider:
    """Collision shape: box (size = edges), cylinder or capsule (size = radius, length along z) or hull (points)."""

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


MAX_PARTS = 8  # per body


@dataclass(frozen=True, kw_only=True)
class BodySpec:
    """Properties common to objects and fixtures. An appearance has one material per part, in order."""

    name: str
    mass_kg: float
    friction: float
    parts: tuple[Mesh, ...]
    colliders: tuple[Collider, ...]
    appearances: Appearances

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
        sampled = self.appearances.sampled(np.random.default_rng(0))
        for materials in (self.appearances.default, *self.appearances.test, sampled):
            if not all(0 <= level <= 1 for material in materials for level in material.colour):
                raise ValueError(f"{self.name}: colours are three numbers between 0 and 1, got {materials}")
            if len(materials) != len(self.parts):
                raise ValueError(
                    f"{self.name}: an appearance has a material for each of its {len(self.parts)} parts, "
                    f"got {len(materials)} materials"
                )
        if not self.appearances.test:
            raise ValueError(f"{self.name}: needs an appearance that is held out")


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Table area covered by an object at rest: a capsule. All within `radius_m` of a line segment at `angle_rad`, from
    `line_m[0]` to `line_m[1]` along it, with the object's centre at 0."""

    angle_rad: float
    line_m: tuple[float, float]
    radius_m: float


@dataclass(frozen=True, kw_only=True)
class ObjectSpec(BodySpec):
    """An object to lift. `long_axis` is in its own frame; `stable_orientations`: Euler angles (rad) at rest."""

    long_axis: Point
    stable_orientations: tuple[Point, ...] = ((0.0, 0.0, 0.0),)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stable_orientations:
            raise ValueError(f"{self.name}: needs a stable orientation")

    @functools.cached_property
    def footprints(self) -> tuple[Footprint, ...]:
        """Footprint in each stable orientation, at scale 1."""
        vertices = np.concatenate([part.vertices for part in self.parts])
        axis, orientations = np.array(self.long_axis), self.stable_orientations
        return tuple(_footprint(vertices, axis, euler_quaternion(*euler)) for euler in orientations)


def is_upright(axis: NDArray[np.floating]) -> bool:
    """Whether an object whose long axis is this unit vector [3] stands rather than lies."""
    return bool(abs(axis[2]) > 0.7)


def _footprint(vertices: NDArray[np.float64], axis: NDArray[np.float64], orientation: NDArray[np.float64]) -> Footprint:
    corners, direction = rotate(orientation, vertices)[:, :2], rotate(orientation, axis)
    angle = float(np.arctan2(direction[1], direction[0]))
    lengths, widths = corners @ [np.cos(angle), np.sin(angle)], corners @ [-np.sin(angle), np.cos(angle)]
    if is_upright(direction):
        return Footprint(angle_rad=0.0, line_m=(0.0, 0.0), radius_m=float(np.linalg.norm(corners, axis=1).max()))
    half = float(np.abs(widths).max())
    line = min(float(lengths.min()) + half, 0.0), max(float(lengths.max()) - half, 0.0)
    beyond = lengths - np.clip(lengths, *line)
    return Footprint(angle_rad=angle, line_m=line, radius_m=float(np.hypot(beyond, widths).max()))


@dataclass(frozen=True, kw_only=True)
class FixtureSpec(BodySpec):
    """A fixture to place on. Origin: centre of its base, z up. An object within `inner_radius_m` lies on it."""

    radius_m: float
    inner_radius_m: float
    friction: float = 0.8
    sections: tuple[Point, ...] = ((0.0, 0.0, 0.0),)  # where a scripted policy places objects
