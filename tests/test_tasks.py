"""The success detectors on hand-made states. Every negative differs from a positive in one respect."""

from __future__ import annotations

import numpy as np
import pytest

from sim.state import FIXTURE_NAMES, OBJECT_NAMES, STATE_SIZE, SceneState
from sim.tasks import SKILLS, TASK_NAMES, TASKS, detect_successes, task_by_name

BANANA, BOTTLE, CARROT = (OBJECT_NAMES.index(name) for name in ("banana", "bottle", "carrot"))
BOWL, PLATE = (FIXTURE_NAMES.index(name) for name in ("bowl", "plate"))


def lifted_banana():
    """The banana between both fingers, its lowest point 8 cm above the table; a bottle stands on the table."""
    state = SceneState.empty()
    state["object_present"][[BANANA, BOTTLE]] = 1
    state["object_on_finger"][BANANA] = 1
    state["object_bottom"][BANANA] = 0.08
    state["object_on_table"][BOTTLE] = 1
    state["gripper_closed"][...] = 1
    state["finger_width"][...] = 0.035
    state["held"][...] = BANANA
    return state


def carrot_in_bowl():
    """All three fixtures; the carrot lies still in the bowl, 3 cm from its centre, and no finger touches it."""
    state = SceneState.empty()
    state["fixture_present"][:] = 1
    state["fixture_position"][:] = [[0.42, -0.13, 0], [0.42, 0.13, 0], [0.63, 0, 0]]
    state["object_present"][CARROT] = 1
    state["object_position"][CARROT] = [0.45, -0.13, 0.03]
    state["object_on_fixture"][CARROT, BOWL] = 1
    return state


def accepted(state):
    return {TASK_NAMES[index] for index in np.flatnonzero(detect_successes(state))}


def test_the_task_table_is_the_papers_ten_tasks_in_order():
    assert TASK_NAMES == (
        "lift-banana",
        "lift-bottle",
        "lift-sausage",
        "lift-milk",
        "lift-food",
        "lift-can",
        "lift-carrot",
        "place-bowl",
        "place-plate",
        "place-divider-plate",
    )
    assert SKILLS == ("lift",) * 7 + ("place",) * 3
    assert [task.index for task in TASKS.values()] == list(range(10))
    assert all(task.horizon == 25 for task in TASKS.values())


def test_an_empty_scene_satisfies_no_task():
    assert accepted(SceneState.empty()) == set()


def test_a_lifted_banana_satisfies_lift_banana_and_nothing_else():
    assert accepted(lifted_banana()) == {"lift-banana"}


@pytest.mark.parametrize("index", range(7))
def test_each_lift_task_accepts_its_own_object_alone(index):
    state = SceneState.empty()
    state["object_present"][index] = 1
    state["object_on_finger"][index] = 1
    state["object_bottom"][index] = 0.08
    state["gripper_closed"][...], state["finger_width"][...] = 1, 0.03
    assert accepted(state) == {f"lift-{OBJECT_NAMES[index]}"}


def test_a_lifted_bottle_is_not_a_lifted_banana():
    state = lifted_banana()
    for name in ("object_present", "object_on_finger", "object_bottom", "object_on_table"):
        state[name][[BANANA, BOTTLE]] = state[name][[BOTTLE, BANANA]]
    assert accepted(state) == {"lift-bottle"}


def test_height_counts_from_six_centimetres():
    state = lifted_banana()
    state["object_bottom"][BANANA] = 0.061
    assert accepted(state) == {"lift-banana"}
    state["object_bottom"][BANANA] = 0.059
    assert accepted(state) == set()


@pytest.mark.parametrize("finger", [0, 1])
def test_an_object_on_one_finger_only_is_not_lifted(finger):
    state = lifted_banana()
    state["object_on_finger"][BANANA, finger] = 0
    assert accepted(state) == set()


def test_an_object_pushed_up_a_wall_by_one_finger_is_not_lifted():
    state = lifted_banana()
    state["object_on_finger"][BANANA] = [1, 0]
    state["object_on_object"][[BANANA, BOTTLE]] = 1
    assert accepted(state) == set()


def test_an_object_balanced_on_the_closed_gripper_is_not_lifted():
    state = lifted_banana()
    state["finger_width"][...] = 0.001
    assert accepted(state) == set()


def test_an_object_that_leans_on_both_open_fingers_is_not_lifted():
    state = lifted_banana()
    state["gripper_closed"][...] = 0
    assert accepted(state) == set()


def test_an_object_that_touches_the_table_is_not_lifted():
    state = lifted_banana()
    state["object_on_table"][BANANA] = 1
    assert accepted(state) == set()


def test_two_objects_lifted_together_are_not_lifted():
    state = lifted_banana()
    state["object_on_object"][[BANANA, BOTTLE]] = 1
    assert accepted(state) == set()


@pytest.mark.parametrize("fixture", range(3))
def test_an_object_that_touches_a_fixture_is_not_lifted(fixture):
    state = lifted_banana()
    state["object_on_fixture"][BANANA, fixture] = 1
    assert "lift-banana" not in accepted(state)


def test_an_absent_object_is_not_lifted():
    state = lifted_banana()
    state["object_present"][BANANA] = 0
    assert accepted(state) == set()


def test_a_carrot_in_the_bowl_satisfies_place_bowl_and_nothing_else():
    assert accepted(carrot_in_bowl()) == {"place-bowl"}


@pytest.mark.parametrize("fixture", range(3))
@pytest.mark.parametrize("index", range(7))
def test_every_object_may_be_placed_on_every_fixture(index, fixture):
    state = SceneState.empty()
    state["fixture_present"][fixture] = 1
    state["object_present"][index] = 1
    state["object_on_fixture"][index, fixture] = 1
    assert accepted(state) == {f"place-{FIXTURE_NAMES[fixture]}"}


@pytest.mark.parametrize("finger", [0, 1])
def test_an_object_that_a_finger_touches_is_not_placed(finger):
    state = carrot_in_bowl()
    state["object_on_finger"][CARROT, finger] = 1
    assert accepted(state) == set()


def test_an_object_that_the_palm_holds_down_is_not_placed():
    state = carrot_in_bowl()
    state["object_on_arm"][CARROT] = 1
    assert accepted(state) == set()


def test_an_object_in_a_bowl_that_is_carried_is_not_placed():
    state = carrot_in_bowl()
    state["fixture_position"][BOWL, 2] = 0.03
    state["object_position"][CARROT, 2] = 0.06
    assert accepted(state) == set()


@pytest.mark.parametrize(
    ("name", "still", "moving"), [("object_velocity", 0.04, 0.06), ("object_angular_velocity", 0.9, 1.1)]
)
def test_an_object_that_still_rolls_is_not_placed(name, still, moving):
    state = carrot_in_bowl()
    state[name][CARROT] = [0, still, 0]
    assert accepted(state) == {"place-bowl"}
    state[name][CARROT] = [0, moving, 0]
    assert accepted(state) == set()


@pytest.mark.parametrize(("fixture", "radius_m"), [(0, 0.085), (1, 0.105), (2, 0.115)])
def test_an_object_whose_centre_lies_on_the_rim_is_not_placed(fixture, radius_m):
    state = carrot_in_bowl()
    state["object_on_fixture"][CARROT] = 0
    state["object_on_fixture"][CARROT, fixture] = 1
    centre = state["fixture_position"][fixture]
    state["object_position"][CARROT] = centre + [0.6 * (radius_m - 0.001), 0.8 * (radius_m - 0.001), 0.03]
    assert accepted(state) == {f"place-{FIXTURE_NAMES[fixture]}"}
    state["object_position"][CARROT] = centre + [0.6 * (radius_m + 0.001), 0.8 * (radius_m + 0.001), 0.03]
    assert accepted(state) == set()


def test_an_object_on_another_fixture_is_placed_there_alone():
    state = carrot_in_bowl()
    state["object_on_fixture"][CARROT] = [0, 1, 0]
    state["object_position"][CARROT] = [0.42, 0.13, 0.03]
    assert accepted(state) == {"place-plate"}


def test_an_object_that_leans_on_two_fixtures_is_placed_on_neither():
    state = carrot_in_bowl()
    state["object_on_fixture"][CARROT] = [1, 1, 0]
    assert accepted(state) == set()


def test_an_object_that_also_touches_the_table_is_not_placed():
    state = carrot_in_bowl()
    state["object_on_table"][CARROT] = 1
    assert accepted(state) == set()


@pytest.mark.parametrize("axis", [0, 1])
def test_nothing_is_placed_on_a_fixture_that_tipped_over(axis):
    state = carrot_in_bowl()
    for angle_deg, expected in ((15, {"place-bowl"}), (25, set()), (180, set())):
        orientation = np.zeros(4)
        orientation[axis], orientation[3] = np.sin(np.radians(angle_deg / 2)), np.cos(np.radians(angle_deg / 2))
        state["fixture_orientation"][BOWL] = orientation
        assert accepted(state) == expected


def test_an_absent_object_and_an_absent_fixture_satisfy_nothing():
    state = carrot_in_bowl()
    state["object_present"][CARROT] = 0
    assert accepted(state) == set()
    state = carrot_in_bowl()
    state["fixture_present"][BOWL] = 0
    assert accepted(state) == set()


def test_one_placed_object_is_enough_where_another_was_spilt():
    state = carrot_in_bowl()
    state["object_present"][BANANA] = 1
    state["object_on_table"][BANANA] = 1
    assert accepted(state) == {"place-bowl"}


def test_a_batch_of_states_gets_the_successes_of_each_alone():
    states = [lifted_banana(), carrot_in_bowl(), SceneState.empty()]
    batch = SceneState(np.stack([[state.vector for state in states]] * 2))
    together = detect_successes(batch)
    assert together.shape == (2, 3, 10)
    assert together.dtype == np.bool_
    for row in together:
        assert np.array_equal(row, [detect_successes(state) for state in states])
    assert together.sum() == 4


def test_a_state_vector_of_another_size_is_refused():
    with pytest.raises(ValueError, match=f"{STATE_SIZE} numbers"):
        SceneState(np.zeros(STATE_SIZE + 1, np.float32))


def test_the_fields_of_a_state_do_not_overlap():
    state = SceneState(np.arange(STATE_SIZE, dtype=np.float32))
    from sim.state import LAYOUT

    everything = np.concatenate([state[name].ravel() for name in LAYOUT])
    assert np.array_equal(everything, np.arange(STATE_SIZE))


def test_an_unknown_task_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"unknown task 'lift-banan'.*place-divider-plate.*Did you mean 'lift-banana'"):
        task_by_name("lift-banan")
