"""The privileged targets of the auxiliary prediction, on states made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sim.landmarks import MAX_OFFSET, OFFSET_UNIT_M, landmarks
from sim.state import SceneState

BANANA, BOTTLE = 0, 1  # long along x, long along z


def turned_about_z(angle_rad):
    return [0, 0, np.sin(angle_rad / 2), np.cos(angle_rad / 2)]


def test_a_landmark_is_the_offset_from_the_gripper_in_its_unit():
    state = SceneState.empty()
    state["gripper_position"][:] = [0.5, 0.0, 0.2]
    state["object_position"][BANANA] = [0.56, -0.15, 0.05]
    state["fixture_position"][2] = [0.5, 0.3, 0.2]
    value, _ = landmarks(state)
    assert value[BANANA, :3] * OFFSET_UNIT_M == pytest.approx([0.06, -0.15, -0.15], abs=1e-6)
    assert value[7 + 2] * OFFSET_UNIT_M == pytest.approx([0.0, 0.3, 0.0, 0.0, 0.0], abs=1e-6)


def test_offsets_are_clipped():
    state = SceneState.empty()
    state["object_position"][BANANA] = [5.0, -5.0, 0.0]
    assert landmarks(state)[0][BANANA, :3].tolist() == [MAX_OFFSET, -MAX_OFFSET, 0.0]


def test_the_turn_is_twice_the_angle_between_long_axis_and_fingers():
    """The fingers lie along y: a banana along x is a quarter turn away (-1, 0), one along y is aligned (1, 0)."""
    state = SceneState.empty()
    for angle_deg, expected in ((0, (-1, 0)), (90, (1, 0)), (270, (1, 0)), (45, (0, -1)), (120, (0.5, 3**0.5 / 2))):
        state["object_orientation"][BANANA] = turned_about_z(np.radians(angle_deg))
        assert landmarks(state)[0][BANANA, 3:].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_turn_of_a_standing_bottle_is_zero():
    assert landmarks(SceneState.empty())[0][BOTTLE, 3:].tolist() == [0.0, 0.0]


def test_presence_is_that_of_objects_then_fixtures():
    state = SceneState.empty()
    state["object_present"][[0, 6]] = 1
    state["fixture_present"][1] = 1
    assert np.flatnonzero(landmarks(state)[1]).tolist() == [0, 6, 8]


def test_a_batch_of_states_gets_the_landmarks_of_each_alone():
    vectors = np.random.default_rng(0).normal(size=(2, 3, SceneState.empty().vector.size)).astype(np.float32)
    value, present = landmarks(SceneState(vectors))
    assert value.shape == (2, 3, 10, 5)
    alone_value, alone_present = landmarks(SceneState(vectors[1, 2]))
    assert np.allclose(value[1, 2], alone_value, atol=1e-5)
    assert np.array_equal(present[1, 2], alone_present)
