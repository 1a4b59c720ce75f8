"""Landmarks, the targets of the auxiliary losses, on hand-made states."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pybullet
import pytest

from sim.camera_geometry import CameraSpec, project
from sim.drawing import SEGMENTS
from sim.landmarks import MAX_OFFSET, OFFSET_UNIT_M, Landmarks, landmarks
from sim.scenes import draw_scene
from sim.state import OBJECT_NAMES, SceneState
from sim.tasks import TASKS
from sim.world import World

BANANA, BOTTLE, MILK = 0, 1, 3  # long along x, along z, along z


def everything():
    state = SceneState.empty()
    state["object_present"][:] = 1
    state["fixture_present"][:] = 1
    return state


def turned_about_z(angle_rad):
    return [0, 0, np.sin(angle_rad / 2), np.cos(angle_rad / 2)]


def test_a_landmark_is_the_offset_from_the_gripper_in_its_unit():
    state = everything()
    state["gripper_position"][:] = [0.5, 0.0, 0.2]
    state["object_position"][BANANA] = [0.56, -0.15, 0.05]
    state["fixture_position"][2] = [0.5, 0.3, 0.2]
    value = landmarks(state).value
    assert value[BANANA, :3] * OFFSET_UNIT_M == pytest.approx([0.06, -0.15, -0.15], abs=1e-6)
    assert value[7 + 2].tolist() == pytest.approx([0.0, 6.0, 0.0, 0.0, 0.0, 1.0], abs=1e-6)


def test_offsets_are_clipped():
    state = everything()
    state["object_position"][BANANA] = [5.0, -5.0, 0.0]
    assert landmarks(state).value[BANANA, :3].tolist() == [MAX_OFFSET, -MAX_OFFSET, 0.0]


def test_the_angle_is_twice_the_angle_between_long_axis_and_fingers():
    """The fingers lie along y: a banana along x is a quarter turn away (-1, 0), one along y is aligned (1, 0)."""
    state = everything()
    for angle_deg, expected in ((0, (-1, 0)), (90, (1, 0)), (270, (1, 0)), (45, (0, -1)), (120, (0.5, 3**0.5 / 2))):
        state["object_orientation"][BANANA] = turned_about_z(np.radians(angle_deg))
        assert landmarks(state).value[BANANA, 3:5].tolist() == pytest.approx(2 * np.array(expected), abs=1e-5)


def test_the_angle_of_a_standing_bottle_is_zero():
    assert landmarks(everything()).value[BOTTLE, 3:].tolist() == [0.0, 0.0, 1.0]


def test_an_absent_object_has_no_landmark():
    state = everything()
    state["object_position"][:] = [0.1, 0.2, 0.0]
    state["fixture_position"][:] = [0.3, 0.1, 0.0]
    state["object_present"][[1, 2, 3, 4, 5]] = 0
    state["fixture_present"][[0, 2]] = 0
    assert np.flatnonzero(landmarks(state).value.any(-1)).tolist() == [0, 6, 8]


def test_an_object_that_stands_between_the_fingertips_differs_from_an_absent_one():
    state = everything()
    state["gripper_position"][:] = state["object_position"][MILK] = [0.5, 0.1, 0.06]
    here = landmarks(state).value[MILK].tolist()
    state["object_present"][MILK] = 0
    absent = landmarks(state).value[MILK].tolist()
    assert (here, absent) == ([0.0, 0.0, 0.0, 0.0, 0.0, 1.0], [0.0] * 6)


def test_a_batch_of_states_gets_the_landmarks_of_each_alone():
    vectors = np.random.default_rng(0).normal(size=(2, 3, SceneState.empty().vector.size)).astype(np.float32)
    together, alone = landmarks(SceneState(vectors)), landmarks(SceneState(vectors[1, 2]))
    assert together.value.shape == (2, 3, 10, 6)
    assert together.point.shape == (2, 3, 11, 2)
    for field in fields(Landmarks):
        assert np.allclose(getattr(together, field.name)[1, 2], getattr(alone, field.name), atol=1e-5), field.name


def test_the_points_are_the_landmarks_and_the_fingertips():
    state = SceneState.empty()
    state["object_present"][[0, 1]] = 1
    assert np.flatnonzero(landmarks(state).point_present).tolist() == [0, 1, 10]


def test_the_camera_projects_as_pybullet_does():
    camera = CameraSpec(eye_m=(1.0, -0.2, 0.6), look_at_m=(0.5, 0.1, 0.0))
    points = np.random.default_rng(0).uniform([0.3, -0.3, 0.0], [0.7, 0.3, 0.3], (20, 3))
    view = np.reshape(pybullet.computeViewMatrix(camera.eye_m, camera.look_at_m, [0, 0, 1]), (4, 4)).T
    projection = pybullet.computeProjectionMatrixFOV(camera.field_of_view_deg, 1.0, camera.near_m, camera.far_m)
    clip = np.concatenate([points, np.ones((20, 1))], axis=1) @ (np.reshape(projection, (4, 4)).T @ view).T
    expected = 0.5 + clip[:, :2] / clip[:, 3:] * [0.5, -0.5]
    assert np.allclose(np.reshape(view, (4, 4)), camera.view_matrix(), atol=1e-6)
    assert np.allclose(np.reshape(projection, (4, 4)).T, camera.projection_matrix(), atol=1e-6)
    assert np.allclose(project(points, np.array(camera.eye_m), camera.axes(), camera), expected, atol=1e-5)


def test_a_drawn_object_lies_where_its_point_says():
    """From a camera that this scene has moved and rolled."""
    world = World(image_size=472, renderer="tiny")
    scene = draw_scene(TASKS["lift-can"], np.random.default_rng(1))
    camera = replace(scene.camera, roll_rad=0.2, eye_m=(0.1, -0.6, 0.8))
    world.reset(replace(scene, camera=camera, objects=scene.objects[:1]))
    can = OBJECT_NAMES.index("can")
    point = landmarks(world.snapshot()).point[can] * 472
    shown = np.argwhere(world.geometry().segmentation == SEGMENTS.index("can"))  # row, column
    world.close()
    assert len(shown) > 1000
    assert np.allclose(shown.mean(axis=0)[::-1], point, atol=6)
