"""The meshes and sizes of the objects and fixtures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pybullet
import pytest

from sim.appearances import Appearances
from sim.bodies import Collider
from sim.materials import Material
from sim.meshes import box, hull, inertia, tube
from sim.objects import FIXTURES, OBJECTS
from sim.state import FIXTURE_NAMES, OBJECT_NAMES
from sim.urdf import write_body

GRIPPER_OPENING_M = 0.08
BODIES = {**OBJECTS, **FIXTURES}
PARTS = [(name, number) for name, spec in BODIES.items() for number in range(len(spec.parts))]


def part(name, number):
    return BODIES[name].parts[number]


def points(spec):
    return np.concatenate([mesh.vertices for mesh in spec.parts])


def test_the_tables_have_the_order_of_the_state_vector():
    assert tuple(OBJECTS) == OBJECT_NAMES
    assert tuple(FIXTURES) == FIXTURE_NAMES


@pytest.mark.parametrize(("name", "number"), PARTS)
def test_every_mesh_is_closed(name, number):
    """Each edge is walked once in each direction, so there is no hole and no face is flipped among its neighbours."""
    mesh = part(name, number)
    corners = np.round(mesh.vertices.reshape(-1, 3, 3), 7) + 0.0
    edges = Counter()
    for triangle in corners:
        for begin, end in zip(triangle, np.roll(triangle, -1, axis=0), strict=True):
            edges[tuple(begin), tuple(end)] += 1
    assert [edge for edge, count in edges.items() if edges[edge[1], edge[0]] != count] == []


@pytest.mark.parametrize(("name", "number"), PARTS)
def test_every_mesh_faces_outward(name, number):
    mesh = part(name, number)
    a, b, c = mesh.vertices.reshape(-1, 3, 3).transpose(1, 0, 2)
    volume = np.einsum("fi,fi->", a, np.cross(b, c)) / 6
    assert volume > 1e-8
    assert (np.einsum("fi,fi->f", np.cross(b - a, c - a), mesh.normals[::3]) > 0).all()


@pytest.mark.parametrize("name", OBJECT_NAMES)
def test_an_object_fits_between_the_fingers_across_its_long_axis(name):
    spec = OBJECTS[name]
    extent = np.ptp(points(spec), axis=0)
    across = [size for size, along in zip(extent, spec.long_axis, strict=True) if not along]
    assert 0.02 < min(across) < GRIPPER_OPENING_M - 0.01
    assert extent @ np.array(spec.long_axis) == pytest.approx(extent.max(), abs=0.02)


@pytest.mark.parametrize("name", FIXTURE_NAMES)
def test_a_fixtures_radius_is_that_of_its_mesh_and_its_base_lies_at_zero(name):
    spec = FIXTURES[name]
    cloud = points(spec)
    assert np.hypot(cloud[:, 0], cloud[:, 1]).max() == pytest.approx(spec.radius_m, abs=1e-6)
    assert cloud[:, 2].min() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", BODIES)
def test_every_appearance_has_a_material_per_part_and_occurs_in_one_split(name):
    spec = BODIES[name]
    rng = np.random.default_rng(0)
    sampled = tuple(spec.appearances.sampled(rng) for _ in range(20))
    appearances = (spec.appearances.default, *spec.appearances.test, *sampled)
    assert all(len(materials) == len(spec.parts) for materials in appearances)
    assert len(set(appearances)) == len(appearances)
    assert len(spec.appearances.test) >= 2


def test_an_appearance_without_a_material_per_part_and_an_unknown_pattern_are_refused():
    with pytest.raises(
        ValueError, match="banana: an appearance has a material for each of its 1 parts, got 2 materials"
    ):
        replace(OBJECTS["banana"], parts=OBJECTS["banana"].parts[:1])
    with pytest.raises(ValueError, match=r"unknown pattern 'specles'.*Did you mean 'speckles'"):
        Material((1, 1, 1), "specles")


def test_every_object_has_its_own_default_colours():
    defaults = [spec.appearances.default for spec in BODIES.values()]
    assert len(set(defaults)) == len(defaults)


def test_the_inertia_of_a_cylinder_is_that_of_the_textbook():
    mass, radius, height = 0.2, 0.03, 0.1
    cylinder = tube([(0, 0, -height / 2), (0, 0, height / 2)], [radius, radius], sides=200)
    about_x, about_y, about_z = inertia([cylinder], mass)
    assert about_z == pytest.approx(mass * radius**2 / 2, rel=0.01)
    assert about_x == pytest.approx(mass * (3 * radius**2 + height**2) / 12, rel=0.01)
    assert about_y == pytest.approx(about_x, rel=1e-3)


def test_the_hull_of_a_box_is_its_corners():
    assert sorted(map(tuple, np.abs(hull([box((2, 4, 6))])))) == [(1.0, 2.0, 3.0)] * 8


def test_a_boxs_texture_is_upright_on_its_vertical_faces():
    mesh = box((1, 1, 1))
    upright = np.abs(mesh.normals[:, 2]) < 0.5
    assert np.array_equal(mesh.uv[upright, 1] > 0.5, mesh.vertices[upright, 2] > 0)


def reach(collider, directions):
    """Extent [K] (m) of a collider in each direction [K, 3]: its support function."""
    rotation = np.reshape(pybullet.getMatrixFromQuaternion(pybullet.getQuaternionFromEuler(collider.euler)), (3, 3))
    local, centre = directions @ rotation, directions @ np.array(collider.centre)
    if collider.points is not None:
        return centre + (local @ np.array(collider.points).T).max(axis=1)
    if collider.kind == "box":
        return centre + np.abs(local) @ np.array(collider.size) / 2
    radius, length = collider.size
    round_part = 1.0 if collider.kind == "capsule" else np.hypot(local[:, 0], local[:, 1])
    return centre + np.abs(local[:, 2]) * length / 2 + radius * round_part


@pytest.mark.parametrize("spec", [*OBJECTS.values(), *FIXTURES.values()], ids=lambda spec: spec.name)
def test_meshes_and_colliders_have_the_same_extent(spec):
    """Otherwise a tip would show inside the table, or objects would rest on nothing."""
    directions = np.random.default_rng(0).normal(size=(2000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    visual = (directions @ np.concatenate([part.vertices for part in spec.parts]).T).max(axis=1)
    collision = np.max([reach(collider, directions) for collider in spec.colliders], axis=0)
    assert (visual - collision).max() < 0.003
    assert (collision - visual).max() < 0.008


@pytest.mark.parametrize("spec", FIXTURES.values(), ids=lambda spec: spec.name)
def test_a_fixtures_colliders_are_as_high_as_its_mesh_everywhere(spec, tmp_path):
    """Rays from above onto its colliders and onto its meshes: a bowl is hollow in both."""
    client = pybullet.connect(pybullet.DIRECT)
    triangles = np.concatenate([part.vertices for part in spec.parts]).reshape(-1, 3, 3)
    rng = np.random.default_rng(0)
    distance, angle = (spec.radius_m - 0.003) * np.sqrt(rng.uniform(size=2000)), rng.uniform(0, 2 * np.pi, size=2000)
    across = np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1)
    try:
        pybullet.loadURDF(str(write_body(spec, tmp_path, visible=False)), physicsClientId=client)
        rays = [[(x, y, z) for x, y in across] for z in (0.2, -0.1)]
        collision = np.array([hit[3][2] for hit in pybullet.rayTestBatch(*rays, physicsClientId=client)])
    finally:
        pybullet.disconnect(client)
    visual = np.max([heights(triangle, across) for triangle in triangles], axis=0)
    assert np.quantile(np.abs(visual - collision), 0.95) < 0.004  # the rest are edges of walls
    assert np.abs(visual - collision).mean() < 0.0015


def heights(triangle, points):
    """Height [K] of a triangle [3, 3] at points [K, 2]; 0 outside of it."""
    (a, b, c), flat = triangle, np.stack([triangle[1] - triangle[0], triangle[2] - triangle[0]], axis=1)[:2]
    if abs(np.linalg.det(flat)) < 1e-12:
        return np.zeros(len(points))
    u, v = np.linalg.solve(flat, (points - a[:2]).T)
    return np.where((u >= 0) & (v >= 0) & (u + v <= 1), a[2] + u * (b[2] - a[2]) + v * (c[2] - a[2]), 0.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"colliders": ()}, "a collider"),
        ({"mass_kg": 0.0}, "a weight"),
        ({"name": "a/b"}, "small letters"),
        ({"stable_orientations": ()}, "a stable orientation"),
        (
            {"appearances": Appearances(default=(Material((255.0, 0.0, 0.0)),), test=((Material((1.0, 0.0, 0.0)),),))},
            "between 0 and 1",
        ),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(OBJECTS["sausage"], **wrong)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("sphere", (0.1,)), "unknown kind of collider 'sphere'"),
        (("box", (0.1,)), "a box has 3 sizes"),
        (("cylinder", (0.1, 0.0)), "sizes above 0"),
        (("hull", ()), "a hull has points"),
    ],
)
def test_a_collider_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Collider(*values)
