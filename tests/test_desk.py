"""The desk: success and shaped rewards are Meta-World's own, controllers solve all tasks, scenes keep to themselves."""

from __future__ import annotations

import numpy as np
import pytest

from eval.behaviour import behaviour_of
from eval.returns import evaluate_behaviour
from sim.benchmarks.desk import DESK, DeskEnv, _settled, control
from sim.benchmarks.desk_rewards import DOOR, DOOR_PLACE, DRAWER, DRAWER_PLACE, FINGERTIPS, HAND

pytestmark = pytest.mark.usefixtures("metaworld")
TASKS = DESK.task_names


@pytest.fixture
def metaworld():
    pytest.importorskip("mujoco")
    pytest.importorskip("metaworld")


def stock(task):
    """Meta-World's environment of a task and its scripted policy, placed by a seed."""
    from metaworld import policies
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    env = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
    env._freeze_rand_vec, env._set_task_called, env.seeded_rand_vec = False, True, True
    env.seed(1)
    return env, getattr(policies, f"Sawyer{task.title().replace('-', '')}V3Policy")()


def quantities_of(env, task):
    body, joint = (("door", "doorjoint"), ("drawer", "goal_slidey"))[task.startswith("drawer")]
    found = {name: np.zeros(()) for name in (DOOR, DRAWER)} | {name: np.zeros(3) for name in (DOOR_PLACE, DRAWER_PLACE)}
    found |= {HAND: env.get_endeff_pos(), FINGERTIPS: env.tcp_center}
    found[DOOR if body == "door" else DRAWER] = np.array(env.data.joint(joint).qpos[0])
    found[DOOR_PLACE if body == "door" else DRAWER_PLACE] = np.array(env.model.body(body).pos)
    return found


@pytest.mark.filterwarnings("ignore:Constant")
@pytest.mark.parametrize("task", TASKS)
def test_success_and_shaped_rewards_are_meta_worlds(task):
    (env, policy), rng, spec = stock(task), np.random.default_rng(0), DESK.tasks[DESK.task_index(task)]
    successes = []
    for _ in range(2):
        observation, _ = env.reset()
        for _ in range(150):
            seen = np.concatenate([observation[:36], env._target_pos])  # a copy: the policies write into it
            action = (policy.get_action(seen) + 0.3 * rng.standard_normal(4)).clip(-1, 1).astype(np.float32)
            observation, reward, _, _, info = env.step(action)
            q = quantities_of(env, task)
            assert spec.shaped_reward(q, action) == pytest.approx(reward, abs=0.02)
            assert bool(spec.success(q)) == bool(info["success"])
            successes.append(bool(info["success"]))
    assert set(successes) == {True, False}


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_controllers_solve_all_tasks_and_keep_them_solved(noise):
    (row,) = evaluate_behaviour(behaviour_of(DESK, "controller", noise), 4, workers=1).members
    for task in TASKS:
        assert row["success"][task] == row["success_at_end"][task] == [True] * 4


def play(envs, task, seeds, steps):
    """Observations [steps, environments, S] of environments side by side."""
    now, found = [env.reset(task, seed) for env, seed in zip(envs, seeds, strict=True)], []
    for _ in range(steps):
        found.append(np.stack(now))
        now = [env.step(control(task, seen)).observation for env, seen in zip(envs, now, strict=True)]
    return np.stack(found)


def test_environments_of_one_process_do_not_disturb_each_other():
    """They share a model, in which the objects' places are written."""
    together = play([DeskEnv(), DeskEnv()], "door-open", (3, 4), 60)
    for number, seed in enumerate((3, 4)):
        assert np.array_equal(together[:, number], play([DeskEnv()], "door-open", [seed], 60)[:, 0])
    assert np.abs(together[0, 0, 4:7] - together[0, 1, 4:7]).max() > 0.005


def test_an_episode_does_not_depend_on_what_the_process_played_before():
    """The hand is brought to rest once, in the model that environments place their objects in."""
    _settled.cache_clear()
    alone = play([DeskEnv()], "drawer-open", [3], 20)
    for seed in range(4):
        _settled.cache_clear()
        play([DeskEnv()], "door-close", [seed], 5)
        assert np.array_equal(play([DeskEnv()], "drawer-open", [3], 20), alone)


@pytest.mark.parametrize("task", TASKS)
def test_the_hand_begins_where_meta_worlds_does_and_touches_nothing(task):
    theirs, env = stock(task)[0].reset()[0][:3], DeskEnv()
    for seed in range(10):
        first = env.reset(task, seed)
        assert first[:3] == pytest.approx(theirs, abs=1e-3)
        for _ in range(30):
            step = env.step(np.zeros(4, np.float32))
        assert step.observation[10:12] == pytest.approx(first[10:12], abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("task", TASKS)
def test_the_other_object_is_closed_and_is_left_alone(task, seed):
    env, other = DeskEnv(), (DRAWER, DOOR)[task.startswith("drawer")]
    observation, most = env.reset(task, seed), 0.0
    joints = dict(zip((DOOR, DRAWER), observation[10:12], strict=True))
    assert joints.pop(other) == 0.0
    (own,) = joints.values()
    assert own == pytest.approx({"door-close": -np.pi / 2, "drawer-close": -0.15}.get(task, 0.0))
    for _ in range(DESK.horizon):
        step = env.step(control(task, observation))
        observation, most = step.observation, max(most, abs(float(step.quantities[other])))
    assert most < 0.03


def test_an_open_door_and_a_closed_one_stay_as_they_are():
    """In Meta-World's scene the open one is pushed out of the success condition by its own case."""
    env = DeskEnv()
    for task, place in (("door-close", -np.pi / 2), ("door-open", 0.0)):
        env.reset(task, 0)
        for _ in range(DESK.horizon):
            step = env.step(np.zeros(4, np.float32))
        assert step.quantities[DOOR] == pytest.approx(place, abs=0.01)


def test_a_success_pays_one_and_ends_nothing():
    q = {name: np.zeros((), np.float32) for name in (DOOR, DRAWER)}
    assert DESK.successes(q).tolist() == [False, True, False, True]
    assert DESK.rewards(q, np.zeros(4, np.float32)).tolist() == [0, 1, 0, 1]
    assert not DESK.terminals(q).any()
    assert DESK.skills == ("door", "door", "drawer", "drawer")
