"""The seven objects and three fixtures, as data: one record each, with procedural meshes.

Lengths in metres, masses in kilograms; sizes and weights of the real things, scaled where an 8 cm gripper needs it.
A visual part is a mesh with one colour; a collider is a primitive or the convex hull of a part.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Mesh:
    """`vertices` [V, 3] m, `normals` [V, 3] unit, `faces` [F, 3] indices."""

    vertices: NDArray[np.float64]
    normals: NDArray[np.float64]
    faces: NDArray[np.int64]


UP, SIDEWAYS = (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)


def tube(path: list[Point], radii: list[float], normal: Point = SIDEWAYS, sides: int = 20) -> Mesh:
    """A closed tube swept along `path`, which lies in a plane with this `normal`, with a radius at each point."""
    centres, radius = np.array(path), np.array(radii)
    tangents = np.gradient(centres, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    side = np.array(normal)
    across = np.cross(tangents, side)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    spokes = np.cos(angle)[None, :, None] * side + np.sin(angle)[None, :, None] * across[:, None, :]
    rings = (centres[:, None, :] + radius[:, None, None] * spokes).reshape(-1, 3)
    vertices = np.concatenate([rings, centres[:1], centres[-1:]])
    first, last = len(rings), len(rings) + 1
    faces: list[tuple[int, int, int]] = []
    for ring in range(len(path) - 1):
        for k in range(sides):
            a, b = ring * sides + k, ring * sides + (k + 1) % sides
            faces += [(a, b, b + sides), (a, b + sides, a + sides)]
    top = (len(path) - 1) * sides
    for k in range(sides):
        faces += [(first, (k + 1) % sides, k), (last, top + k, top + (k + 1) % sides)]
    return _flat_shaded(vertices, np.array(faces), crease_cosine=0.6)


def prism(outline: list[tuple[float, float]], length: float) -> Mesh:
    """A convex outline in x and z, extruded along y and centred there."""
    n = len(outline)
    near = [(x, -length / 2, z) for x, z in outline]
    far = [(x, length / 2, z) for x, z in outline]
    faces = [(0, k, k + 1) for k in range(1, n - 1)] + [(n, n + k + 1, n + k) for k in range(1, n - 1)]
    for k in range(n):
        j = (k + 1) % n
        faces += [(k, n + k, n + j), (k, n + j, j)]
    return _flat_shaded(np.array(near + far), np.array(faces), crease_cosine=0.9)


def box(size: Point, centre: Point = (0.0, 0.0, 0.0)) -> Mesh:
    hx, hz = size[0] / 2, size[2] / 2
    mesh = prism([(-hx, -hz), (hx, -hz), (hx, hz), (-hx, hz)], size[1])
    return Mesh(mesh.vertices + np.array(centre), mesh.normals, mesh.faces)


def revolve(profile: list[tuple[float, float]], sides: int = 36) -> Mesh:
    """A surface of revolution about z from (radius, z) points; may be an open or a folded shell (bowls, plates)."""
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    vertices = np.array([(r * np.cos(a), r * np.sin(a), z) for r, z in profile for a in angle])
    faces = []
    for ring in range(len(profile) - 1):
        for k in range(sides):
            a, b = ring * sides + k, ring * sides + (k + 1) % sides
            faces += [(a, b, b + sides), (a, b + sides, a + sides)]
    return _flat_shaded(vertices, np.array(faces), crease_cosine=0.6)


def _flat_shaded(vertices: NDArray[np.float64], faces: NDArray[np.int64], crease_cosine: float) -> Mesh:
    """Give each face its own vertices; normals are averaged over the neighbours that bend less than the crease."""
    corners = vertices[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(normal, axis=1, keepdims=True)
    keep = area[:, 0] > 1e-12
    faces, corners, normal = faces[keep], corners[keep], (normal / np.maximum(area, 1e-12))[keep]
    at_vertex: dict[int, list[int]] = {}
    for face, triple in enumerate(faces):
        for vertex in triple:
            at_vertex.setdefault(int(vertex), []).append(face)
    smooth = np.empty_like(corners)
    for face, triple in enumerate(faces):
        for corner, vertex in enumerate(triple):
            around = normal[at_vertex[int(vertex)]]
            mean = around[around @ normal[face] > crease_cosine].sum(axis=0)
            smooth[face, corner] = mean / np.linalg.norm(mean)
    return Mesh(corners.reshape(-1, 3), smooth.reshape(-1, 3), np.arange(3 * len(faces)).reshape(-1, 3))


@dataclass(frozen=True)
class Part:
    mesh: Mesh
    colour: Colour


@dataclass(frozen=True)
class Collider:
    """`kind` is box (size = edges), cylinder or capsule (size = radius, length along z) or hull (points)."""

    kind: str
    size: tuple[float, ...] = ()
    centre: Point = (0.0, 0.0, 0.0)
    euler: Point = (0.0, 0.0, 0.0)
    points: NDArray[np.float64] | None = None


@dataclass(frozen=True, kw_only=True)
class ObjectSpec:
    """A thing that can be lifted. `long_axis` is in its own frame; `rests` are the orientations it starts in."""

    name: str
    mass_kg: float
    friction: float
    parts: tuple[Part, ...]
    colliders: tuple[Collider, ...]
    long_axis: Point
    rests: tuple[Point, ...] = ((0.0, 0.0, 0.0),)


@dataclass(frozen=True, kw_only=True)
class FixtureSpec:
    """A thing to place on; its origin is the centre of its base, z up. `radius_m` is its outer radius."""

    name: str
    mass_kg: float
    radius_m: float
    parts: tuple[Part, ...]
    colliders: tuple[Collider, ...]


def _arc(radius: float, half_angle: float, count: int) -> list[Point]:
    angles = np.linspace(-half_angle, half_angle, count)
    return [(radius * np.sin(a), radius * (np.cos(a) - np.cos(half_angle / 2)), 0.0) for a in angles]


def _chain(path: list[Point], radii: list[float]) -> tuple[Collider, ...]:
    """Capsules along a path in the x-y plane, each as thick as the mean of its ends."""
    out = []
    for (a, b), (ra, rb) in zip(pairwise(path), pairwise(radii), strict=True):
        start, end = np.array(a), np.array(b)
        direction = end - start
        yaw = float(np.arctan2(direction[1], direction[0]))
        middle = tuple(float(v) for v in (start + end) / 2)
        size = ((ra + rb) / 2, float(np.linalg.norm(direction)))
        out.append(Collider("capsule", size, (middle[0], middle[1], middle[2]), (0.0, np.pi / 2, yaw)))
    return tuple(out)


def _banana() -> ObjectSpec:
    path = _arc(0.105, 0.75, 13)
    radii = [0.006, 0.011, 0.0145, 0.0165, 0.0175, 0.018, 0.018, 0.018, 0.0175, 0.0165, 0.0145, 0.010, 0.006]
    tip = [(path[-1][0] + 0.001, path[-1][1], 0.0), (path[-1][0] + 0.012, path[-1][1] - 0.009, 0.0)]
    return ObjectSpec(
        name="banana",
        mass_kg=0.12,
        friction=0.8,
        parts=(Part(tube(path, radii, UP), (0.95, 0.80, 0.12)), Part(tube(tip, [0.005, 0.004], UP), (0.35, 0.25, 0.1))),
        colliders=_chain(path[1:-1:2], radii[1:-1:2]),
        long_axis=(1.0, 0.0, 0.0),
    )


def _sausage() -> ObjectSpec:
    path = _arc(0.16, 0.36, 9)
    radii = [0.004, 0.012, 0.0155, 0.016, 0.016, 0.016, 0.0155, 0.012, 0.004]
    return ObjectSpec(
        name="sausage",
        mass_kg=0.09,
        friction=0.8,
        parts=(Part(tube(path, radii, UP), (0.62, 0.22, 0.13)),),
        colliders=_chain([path[1], path[4], path[7]], [0.015, 0.016, 0.015]),
        long_axis=(1.0, 0.0, 0.0),
    )


def _carrot() -> ObjectSpec:
    body: list[Point] = [(-0.075, 0, 0), (-0.06, 0, 0), (-0.02, 0, 0), (0.03, 0, 0), (0.058, 0, 0), (0.064, 0, 0)]
    radii = [0.003, 0.006, 0.0115, 0.0165, 0.0175, 0.010]
    mesh = tube(body, radii, UP)
    leaves = tube([(0.062, 0, 0), (0.075, 0, 0), (0.092, 0, 0)], [0.006, 0.012, 0.004], UP)
    return ObjectSpec(
        name="carrot",
        mass_kg=0.08,
        friction=0.8,
        parts=(Part(mesh, (0.96, 0.45, 0.08)), Part(leaves, (0.18, 0.50, 0.15))),
        colliders=(Collider("hull", points=mesh.vertices),),
        long_axis=(1.0, 0.0, 0.0),
    )


LYING = (np.pi / 2, 0.0, 0.0)
STANDING = (0.0, 0.0, 0.0)


def _bottle() -> ObjectSpec:
    def along(z: list[float]) -> list[Point]:
        return [(0.0, 0.0, v) for v in z]

    return ObjectSpec(
        name="bottle",
        mass_kg=0.25,
        friction=0.7,
        parts=(
            Part(tube(along([-0.08, -0.04]), [0.028, 0.028]), (0.10, 0.45, 0.30)),
            Part(tube(along([-0.04, 0.015]), [0.0284, 0.0284]), (0.95, 0.95, 0.90)),
            Part(tube(along([0.015, 0.03, 0.05, 0.068]), [0.028, 0.027, 0.013, 0.012]), (0.10, 0.45, 0.30)),
            Part(tube(along([0.066, 0.08]), [0.0145, 0.0145]), (0.85, 0.15, 0.12)),
        ),
        colliders=(
            Collider("cylinder", (0.028, 0.11), (0.0, 0.0, -0.025)),
            Collider("cylinder", (0.0145, 0.05), (0.0, 0.0, 0.055)),
        ),
        long_axis=(0.0, 0.0, 1.0),
        rests=(STANDING, LYING),
    )


def _can() -> ObjectSpec:
    def along(*z: float) -> list[Point]:
        return [(0.0, 0.0, v) for v in z]

    return ObjectSpec(
        name="can",
        mass_kg=0.20,
        friction=0.7,
        parts=(
            Part(tube(along(-0.043, 0.043), [0.031, 0.031]), (0.80, 0.10, 0.12)),
            Part(tube(along(-0.012, 0.018), [0.0314, 0.0314]), (0.96, 0.92, 0.80)),
            Part(tube(along(0.043, 0.049), [0.031, 0.027]), (0.75, 0.76, 0.78)),
            Part(tube(along(-0.049, -0.043), [0.027, 0.031]), (0.75, 0.76, 0.78)),
        ),
        colliders=(Collider("cylinder", (0.031, 0.098)),),
        long_axis=(0.0, 0.0, 1.0),
        rests=(STANDING, LYING),
    )


def _milk() -> ObjectSpec:
    w, h, top = 0.027, 0.045, 0.065
    gable = prism([(-w, h), (w, h), (0.004, top - 0.008), (-0.004, top - 0.008)], 2 * w)
    body = box((2 * w, 2 * w, 0.11), (0.0, 0.0, -0.01))
    ridge = box((0.006, 2 * w, 0.012), (0.0, 0.0, top - 0.003))
    return ObjectSpec(
        name="milk",
        mass_kg=0.25,
        friction=0.7,
        parts=(
            Part(body, (0.96, 0.96, 0.98)),
            Part(box((2 * w + 0.001, 2 * w + 0.001, 0.035), (0.0, 0.0, -0.005)), (0.15, 0.35, 0.85)),
            Part(gable, (0.15, 0.35, 0.85)),
            Part(ridge, (0.96, 0.96, 0.98)),
        ),
        colliders=(Collider("hull", points=np.concatenate([body.vertices, gable.vertices])),),
        long_axis=(0.0, 0.0, 1.0),
        rests=(STANDING, LYING),
    )


def _food() -> ObjectSpec:
    size = (0.05, 0.09, 0.036)
    return ObjectSpec(
        name="food",
        mass_kg=0.18,
        friction=0.7,
        parts=(
            Part(box(size), (0.45, 0.20, 0.55)),
            Part(box((0.0505, 0.05, 0.0365)), (0.98, 0.85, 0.30)),
        ),
        colliders=(Collider("box", size),),
        long_axis=(0.0, 1.0, 0.0),
    )


def _ring(radius: float, size: tuple[float, float], centre_z: float, lean: float = 0.0) -> tuple[Collider, ...]:
    """Sixteen boxes along a circle: a rim of (thickness, height) that `lean`s outwards (rad) and clears the table."""
    count = 16
    width = 2.2 * radius * np.tan(np.pi / count)
    out = []
    for k in range(count):
        a = 2 * np.pi * k / count
        centre = (radius * np.cos(a), radius * np.sin(a), centre_z)
        out.append(Collider("box", (size[0], width, size[1]), centre, (0.0, lean, a)))
    return tuple(out)


def _bowl() -> FixtureSpec:
    shell = revolve(
        [
            (0.0, 0.0),
            (0.05, 0.0),
            (0.075, 0.015),
            (0.092, 0.045),
            (0.094, 0.052),
            (0.089, 0.052),
            (0.071, 0.019),
            (0.048, 0.006),
            (0.0, 0.006),
        ]
    )
    return FixtureSpec(
        name="bowl",
        mass_kg=0.5,
        radius_m=0.094,
        parts=(Part(shell, (0.20, 0.55, 0.75)),),
        colliders=(
            Collider("cylinder", (0.06, 0.006), (0.0, 0.0, 0.003)),
            *_ring(0.076, (0.006, 0.050), 0.028, lean=0.62),
        ),
    )


def _plate() -> FixtureSpec:
    shell = revolve(
        [(0.0, 0.0), (0.070, 0.0), (0.105, 0.013), (0.108, 0.016), (0.104, 0.0165), (0.069, 0.006), (0.0, 0.006)]
    )
    return FixtureSpec(
        name="plate",
        mass_kg=0.5,
        radius_m=0.108,
        parts=(Part(shell, (0.93, 0.93, 0.90)),),
        colliders=(
            Collider("cylinder", (0.072, 0.006), (0.0, 0.0, 0.003)),
            *_ring(0.088, (0.05, 0.004), 0.011, lean=-0.33),
        ),
    )


def _divider_plate() -> FixtureSpec:
    shell = revolve([(0.0, 0.0), (0.116, 0.0), (0.118, 0.03), (0.113, 0.03), (0.112, 0.006), (0.0, 0.006)])
    walls = []
    for k in range(3):
        a = 2 * np.pi * k / 3
        centre = (0.056 * np.cos(a), 0.056 * np.sin(a), 0.014)
        walls.append(Collider("box", (0.112, 0.006, 0.016), centre, (0.0, 0.0, a)))
    visual_walls = tuple(Part(_turned(box(_edges(w.size)), w.euler[2], w.centre), (0.85, 0.35, 0.45)) for w in walls)
    return FixtureSpec(
        name="divider-plate",
        mass_kg=0.5,
        radius_m=0.118,
        parts=(Part(shell, (0.85, 0.35, 0.45)), *visual_walls),
        colliders=(
            Collider("cylinder", (0.116, 0.006), (0.0, 0.0, 0.003)),
            *_ring(0.115, (0.006, 0.026), 0.017),
            *walls,
        ),
    )


def _edges(size: tuple[float, ...]) -> Point:
    return size[0], size[1], size[2]


def _turned(mesh: Mesh, yaw: float, centre: Point) -> Mesh:
    c, s = np.cos(yaw), np.sin(yaw)
    turn = np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
    return Mesh(mesh.vertices @ turn + np.array(centre), mesh.normals @ turn, mesh.faces)


OBJECTS: dict[str, ObjectSpec] = {
    spec.name: spec for spec in (_banana(), _bottle(), _sausage(), _milk(), _food(), _can(), _carrot())
}
FIXTURES: dict[str, FixtureSpec] = {spec.name: spec for spec in (_bowl(), _plate(), _divider_plate())}
