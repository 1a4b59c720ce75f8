"""Procedural meshes with normals and texture coordinates: tubes, prisms, boxes, surfaces of revolution.

Shapes: `F` faces. Faces share no vertices, so each has its own normals and texture coordinates. Lengths in metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float, float]
UP, SIDEWAYS = (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)
SMOOTH_COSINE = 0.6  # faces whose normals differ by less than this angle are shaded smoothly


@dataclass(frozen=True)
class Mesh:
    """Triangle mesh: `vertices` [3F, 3] (m), outward unit `normals` [3F, 3], texture coordinates `uv` [3F, 2], v up."""

    vertices: NDArray[np.float64]
    normals: NDArray[np.float64]
    uv: NDArray[np.float64]

    def moved(self, centre: Point = (0.0, 0.0, 0.0), yaw_rad: float = 0.0) -> Mesh:
        """A copy, rotated about z, then translated."""
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        rotation = np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
        return Mesh(self.vertices @ rotation + np.array(centre), self.normals @ rotation, self.uv)


def inertia(meshes: list[Mesh], mass_kg: float) -> NDArray[np.float64]:
    """Diagonal [3] (kg m^2) of the inertia tensor of solids of equal density, about their common origin."""
    import trimesh  # training needs no more than the objects' names

    solids = [trimesh.Trimesh(m.vertices, np.arange(len(m.vertices)).reshape(-1, 3)) for m in meshes]
    volume = sum(solid.volume for solid in solids)
    total = np.zeros(3)
    for solid in solids:
        mass = mass_kg * solid.volume / volume
        own = np.diag(solid.moment_inertia) * mass / solid.mass
        total += own + mass * ((solid.center_mass**2).sum() - solid.center_mass**2)
    return total


def hull(meshes: list[Mesh]) -> NDArray[np.float64]:
    """Vertices [P, 3] of the convex hull of all meshes: the lowest point in any pose is one of them."""
    from scipy.spatial import ConvexHull

    points = np.concatenate([mesh.vertices for mesh in meshes])
    return points[ConvexHull(points).vertices]


def tube(path: list[Point], radii: list[float], normal: Point = SIDEWAYS, sides: int = 20) -> Mesh:
    """A closed tube swept along a planar `path`, with a radius per point; `normal` is that of the plane."""
    centres, radius = np.array(path), np.array(radii)
    tangents = np.gradient(centres, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    side = np.array(normal)
    across = np.cross(tangents, side)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    spokes = np.cos(angle)[None, :, None] * side + np.sin(angle)[None, :, None] * across[:, None, :]
    rings = centres[:, None, :] + radius[:, None, None] * spokes
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(centres, axis=0), axis=1))])
    around = np.broadcast_to(np.linspace(0.0, 1.0, sides + 1), rings.shape[:2])
    along = np.broadcast_to((length / length[-1])[:, None], rings.shape[:2])
    corners, uv = _strips(rings, np.stack([around, along], axis=-1))
    for end, flip in ((0, True), (-1, False)):
        ring = rings[end]
        fan = np.stack([np.broadcast_to(centres[end], ring[1:].shape), ring[:-1], ring[1:]], axis=1)
        corners = np.concatenate([corners, fan[:, ::-1] if flip else fan])
        uv = np.concatenate([uv, np.tile([0.5, float(length[end] / length[-1])], (sides, 3, 1))])
    return _shaded(corners, uv, SMOOTH_COSINE)


def prism(outline: list[tuple[float, float]], length: float) -> Mesh:
    """A convex outline in x and z, extruded along y, centred at y = 0."""
    flat = np.array(outline)
    low, size = flat.min(axis=0), np.ptp(flat, axis=0)
    near = np.insert(flat, 1, -length / 2, axis=1)
    far = np.insert(flat, 1, length / 2, axis=1)
    flat_uv = (flat - low) / size
    corners, uv = [], []
    for k in range(1, len(flat) - 1):
        corners += [near[[0, k, k + 1]], far[[0, k + 1, k]]]
        uv += [flat_uv[[0, k, k + 1]], flat_uv[[0, k + 1, k]]]
    for k in range(len(flat)):
        j = (k + 1) % len(flat)
        corners += [np.stack([near[k], far[k], far[j]]), np.stack([near[k], far[j], near[j]])]
        uv += [np.array([(0, 0), (1, 0), (1, 1)]), np.array([(0, 0), (1, 1), (0, 1)])]
    return _shaded(np.array(corners), np.array(uv, np.float64), 0.9)


def box(size: Point, centre: Point = (0.0, 0.0, 0.0)) -> Mesh:
    """A box with textures upright on its vertical faces."""
    corners, uv = [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            normal = np.zeros(3)
            normal[axis] = sign
            up = np.array(UP) if axis != 2 else np.array([sign, 0.0, 0.0])
            right = np.cross(up, normal)
            for triangle in (((-1, -1), (1, -1), (1, 1)), ((-1, -1), (1, 1), (-1, 1))):
                corners.append([(normal + a * right + b * up) * np.array(size) / 2 for a, b in triangle])
                uv.append([((a + 1) / 2, (b + 1) / 2) for a, b in triangle])
    return _shaded(np.array(corners), np.array(uv), 0.9).moved(centre)


def revolve(profile: list[tuple[float, float]], sides: int = 36) -> Mesh:
    """A surface of revolution about z from (radius, z) points; may be an open or a folded shell (bowls, plates)."""
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    outline = np.array(profile)
    spokes = np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], axis=-1)
    rings = outline[:, :1, None] * spokes + outline[:, 1:, None] * np.array(UP)
    radius = outline[:, :1, None] / outline[:, 0].max()
    corners, uv = _strips(rings, 0.5 + 0.5 * radius * spokes[None, :, :2])  # projected from above
    return _shaded(corners, uv, SMOOTH_COSINE)


def _strips(rings: NDArray[np.float64], uv: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two triangles per cell of a grid of points [R, S, 3], with their texture coordinates [R, S, 2]."""

    def triangles(grid: NDArray[np.float64]) -> NDArray[np.float64]:
        a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]
        pairs = np.stack([np.stack([a, b, c], axis=-2), np.stack([a, c, d], axis=-2)], axis=2)
        return pairs.reshape(-1, 3, grid.shape[-1])

    return triangles(rings), triangles(uv)


def _shaded(corners: NDArray[np.float64], uv: NDArray[np.float64], crease_cosine: float) -> Mesh:
    """A mesh of triangles [F, 3, 3] with normals averaged over adjacent faces below the crease angle."""
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(normal, axis=1)
    keep = area > 1e-12
    corners, uv, normal = corners[keep], uv[keep], normal[keep] / area[keep, None]
    _, vertex = np.unique(np.round(corners.reshape(-1, 3), 7), axis=0, return_inverse=True)
    vertex = vertex.reshape(-1, 3)
    at_vertex: dict[int, list[int]] = {}
    for face, triple in enumerate(vertex):
        for number in triple:
            at_vertex.setdefault(int(number), []).append(face)
    smooth = np.empty_like(corners)
    for face, triple in enumerate(vertex):
        for corner, number in enumerate(triple):
            around = normal[at_vertex[int(number)]]
            mean = around[around @ normal[face] > crease_cosine].sum(axis=0)
            smooth[face, corner] = mean / np.linalg.norm(mean)
    return Mesh(corners.reshape(-1, 3), smooth.reshape(-1, 3), uv.reshape(-1, 2))


def smooth(vertices: NDArray[np.float64], faces: NDArray[np.int64], crease_cosine: float) -> Mesh:
    """An untextured mesh from vertices [V, 3] and faces [F, 3], with smooth normals below the crease angle."""
    return _shaded(vertices[faces], np.zeros((len(faces), 3, 2)), crease_cosine)
