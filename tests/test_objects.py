"""The meshes and sizes of the objects and fixtures."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sim.objects import FIXTURES, OBJECTS
from sim.state import FIXTURE_NAMES, OBJECT_NAMES

GRIPPER_OPENING_M = 0.08
BODIES = {**OBJECTS, **FIXTURES}
PARTS = [(name, number) for name, spec in BODIES.items() for number in range(len(spec.parts))]


def part(name, number):
    return BODIES[name].parts[number].mesh


def points(spec):
    return np.concatenate([part.mesh.vertices for part in spec.parts])


def test_the_tables_have_the_order_of_the_state_vector():
    assert tuple(OBJECTS) == OBJECT_NAMES
    assert tuple(FIXTURES) == FIXTURE_NAMES


@pytest.mark.parametrize(("name", "number"), PARTS)
def test_every_mesh_is_closed(name, number):
    """Each edge is walked once in each direction, so there is no hole and no face is flipped among its neighbours."""
    mesh = part(name, number)
    corners = np.round(mesh.vertices[mesh.faces], 9) + 0.0
    edges = Counter()
    for triangle in corners:
        for begin, end in zip(triangle, np.roll(triangle, -1, axis=0), strict=True):
            edges[tuple(begin), tuple(end)] += 1
    assert [edge for edge, count in edges.items() if edges[edge[1], edge[0]] != count] == []


@pytest.mark.parametrize(("name", "number"), PARTS)
def test_every_mesh_faces_outward(name, number):
    mesh = part(name, number)
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    volume = np.einsum("fi,fi->", a, np.cross(b, c)) / 6
    assert volume > 1e-8
    assert (np.einsum("fi,fi->f", np.cross(b - a, c - a), mesh.normals[mesh.faces[:, 0]]) > 0).all()


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
