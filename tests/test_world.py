"""The pick-place world and its environment, mostly with 64 px images of TinyRenderer."""

from __future__ import annotations

import ast
import multiprocessing as mp
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import sim.env
import sim.world
from sim import actions
from sim.camera import resolve_renderer
from sim.env import PickPlaceEnv, as_action, as_batch
from sim.episodes import play
from sim.image_sizes import frame_size
from sim.policies import AimlessPolicy, CrudePolicy, RandomPolicy, ScriptedPolicy
from sim.scenes import draw_scene
from sim.state import OBJECT_NAMES, SceneState
from sim.tasks import SKILLS, TASK_NAMES, TASKS, detect_successes
from sim.world import World

RENDERER = resolve_renderer("auto")
STILL = np.zeros(5, np.float32)


@pytest.fixture(scope="module")
def env():
    env = PickPlaceEnv(image_size=64, renderer="tiny")
    yield env
    env.close()


def run(env, policy, task, seed):
    """The reward, the last info, and the number of steps of an episode."""
    *_, last = steps = list(play(env, policy, TASKS[task], seed, np.random.default_rng(seed)))
    return last.reward, last.info, len(steps) - 1


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_scripted_policy_solves_every_task(env, task):
    outcomes = [run(env, ScriptedPolicy(0.0), task, seed) for seed in (1, 2, 3)]
    assert sum(reward for reward, _, _ in outcomes) >= 2
    for reward, info, steps in outcomes:
        assert reward == info["successes"][TASKS[task].index]
        assert steps <= 25


def test_random_actions_hardly_ever_solve_a_task(env):
    assert sum(run(env, RandomPolicy(), TASK_NAMES[seed], seed)[0] for seed in range(10)) <= 2


@pytest.mark.parametrize("task", TASK_NAMES)
def test_a_new_scene_shows_the_task_and_does_not_solve_it(env, task):
    for seed in range(3):
        _, info = env.reset(seed=seed, options={"task": task})
        state = SceneState(info["state"])
        assert state["target"] == TASKS[task].target
        assert not info["successes"][TASKS[task].index]
        if SKILLS[TASKS[task].index] == "lift":
            assert state["object_present"][TASKS[task].target] == 1
            assert 3 <= state["object_present"].sum() <= 5
            assert state["held"] == -1
            assert np.abs(state["object_velocity"]).max() < 0.1
        else:
            assert state["fixture_present"].sum() == 3
            assert state["object_present"].sum() == 1
            assert state["held"] == np.flatnonzero(state["object_present"])[0]
            assert state["gripper_closed"] == 1


def test_a_held_object_stays_in_the_hand_while_it_is_moved_and_falls_when_the_fingers_open(env):
    """Held by friction alone: nothing but the fingers keeps it up, and letting go lets it go."""
    for seed in range(3):
        _, info, _ = run(env, ScriptedPolicy(0.0), "lift-can", seed)
        if not info["successes"][TASKS["lift-can"].index]:
            continue
        can = OBJECT_NAMES.index("can")
        for _ in range(2):
            env.world.step(np.array([0.0, 0.0, 0.05, 0.0, actions.NONE], np.float32))
        high = env.world.snapshot()
        assert detect_successes(high)[TASKS["lift-can"].index]
        assert high["object_bottom"][can] > 0.12
        env.world.step(np.array([0.0, 0.0, 0.0, 0.0, actions.OPEN], np.float32))
        for _ in range(4):
            env.world.step(STILL)
        low = env.world.snapshot()
        assert low["object_bottom"][can] < 0.06  # on the table, or on an object that lies there
        assert low["object_on_table"][can] == 1
        assert not detect_successes(low)[TASKS["lift-can"].index]
        return
    pytest.fail("the scripted policy lifted no can in three scenes")


def test_one_seed_gives_bit_identical_states_and_images_in_two_fresh_worlds():
    histories = []
    for _ in range(2):
        env = PickPlaceEnv(image_size=64, renderer="tiny")
        history = []
        for task in ("lift-food", "place-bowl"):
            episode = play(env, ScriptedPolicy(1.0), TASKS[task], 5, np.random.default_rng(5))
            history += [(step.info["state"], step.observation["image"]) for step in islice(episode, 9)]
        env.close()
        histories.append(history)
    for (state, image), (other_state, other_image) in zip(*histories, strict=True):
        assert np.array_equal(state, other_state)
        assert np.array_equal(image, other_image)


def test_other_seeds_give_other_scenes_and_the_image_follows_the_scene(env):
    first, info = env.reset(seed=0, options={"task": "lift-can"})
    second, other = env.reset(seed=1, options={"task": "lift-can"})
    assert not np.array_equal(info["state"], other["state"])
    assert not np.array_equal(first["image"], second["image"])
    for _ in range(2):  # the first may be delayed
        moved, *_ = env.step({"translation": [0, 0.06, 0], "yaw": 0.0, "command": 0})
    assert not np.array_equal(second["image"], moved["image"])


def histories(world, seeds):
    """The bytes of all states and of the last image of one crude episode per seed; the tasks alternate."""
    out = []
    for seed in seeds:
        task, rng = TASKS[TASK_NAMES[seed % len(TASK_NAMES)]], np.random.default_rng([5, seed])
        world.reset(draw_scene(task, rng))
        policy, states = CrudePolicy(), [world.snapshot()]
        for _ in range(10):
            observation = {"state": states[-1].vector[None]}
            world.step(policy.act(observation, np.array([task.index]), rng)[0])
            states.append(world.snapshot())
        out.append(world.render().tobytes() + b"".join(state.vector.tobytes() for state in states))
    return out


def fresh_histories(seeds):
    world = World(48, RENDERER)
    try:
        return histories(world, seeds)
    finally:
        world.close()


def test_after_a_thousand_resets_episodes_are_bit_identical_to_those_of_a_fresh_world_in_another_process():
    world = World(48, RENDERER)
    rng = np.random.default_rng(0)
    for count in range(1000):
        world.reset(draw_scene(TASKS[TASK_NAMES[count % 10]], rng))
        if count % 10 == 3:
            world.step(RandomPolicy().act({}, np.zeros(1), rng)[0])
    used = histories(world, range(10))
    world.close()
    with ProcessPoolExecutor(1, mp_context=mp.get_context("spawn")) as pool:
        assert pool.submit(fresh_histories, range(10)).result() == used


def methods_and_their_calls():
    """Method of World -> names of all attributes that it calls."""
    tree = ast.parse(Path(sim.world.__file__).read_text())
    world = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "World")
    return {
        method.name: {
            node.func.attr
            for node in ast.walk(method)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        for method in world.body
        if isinstance(method, ast.FunctionDef)
    }


def test_nothing_is_attached_and_after_reset_nothing_is_moved_but_by_physics():
    calls = methods_and_their_calls()
    assert "createConstraint" not in Path(sim.world.__file__).read_text()
    reached, todo = set(), ["step", "snapshot", "render"]
    while todo:
        name = todo.pop()
        reached.add(name)
        todo += [called for called in calls[name] if called in calls and called not in reached]
    assert "_simulate" in reached
    teleports = {"resetBasePositionAndOrientation", "resetBaseVelocity", "resetJointState", "applyExternalForce"}
    assert not teleports & set().union(*(calls[name] for name in reached))
    assert "resetBasePositionAndOrientation" in calls["_put_into_hand"]  # the search would find it


def test_a_472_px_image_shows_a_scene():
    world = World(472, "tiny")
    world.reset(draw_scene(TASKS["place-bowl"], np.random.default_rng(0)))
    image = world.render()
    world.close()
    assert image.shape == (472, 472, 3)
    assert image.dtype == np.uint8
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 100
    assert image.std(axis=(0, 1)).min() > 10


def test_stored_frames_are_larger_than_the_crop_as_512_is_to_472():
    assert [frame_size(size) for size in (48, 64, 128, 472)] == [56, 72, 144, 512]


def test_an_image_smaller_than_48_px_and_an_unknown_renderer_are_refused():
    with pytest.raises(ValueError, match="at least 48 px, got 47"):
        World(47, "tiny")
    with pytest.raises(ValueError, match=r"unknown renderer 'tinny'.*Did you mean 'tiny'"):
        World(64, "tinny")


def test_gymnasiums_own_check_accepts_the_registered_environment():
    assert sim.env.PickPlaceEnv is PickPlaceEnv
    env = gymnasium.make("switchyard/PickPlace-v0", image_size=48, renderer="tiny", disable_env_checker=True)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.unwrapped.render().shape == (48, 48, 3)
    env.close()


@pytest.mark.parametrize("renderer", sorted({"tiny", RENDERER}))
def test_depth_and_segmentation_are_observed_on_request(renderer):
    env = PickPlaceEnv("lift-can", 48, renderer, extras=("depth", "segmentation"))
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert np.array_equal(observation["depth"], env.world.geometry().depth_m)
    assert np.array_equal(observation["segmentation"], env.world.geometry().segmentation)
    env.close()
    with pytest.raises(ValueError, match="unknown extra observation 'dept'"):
        PickPlaceEnv("lift-can", 48, "tiny", extras=("dept",))


def test_an_episode_is_truncated_at_its_horizon_and_rewarded_there_alone(env):
    env.reset(seed=0, options={"task": "lift-can"})
    ends = [env.step(as_action(STILL))[1:4] for _ in range(25)]
    assert ends == [(0.0, False, False)] * 24 + [(0.0, False, True)]


def test_another_horizon_may_be_asked_for():
    env = PickPlaceEnv(task="lift-can", image_size=48, renderer="tiny", horizon=3)
    env.reset(seed=0)
    assert [env.step(as_action(STILL))[3] for _ in range(3)] == [False, False, True]
    env.close()


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"max_episode_steps": 4}, 4),
        ({"max_episode_steps": 4, "horizon": 9}, 4),
        ({"max_episode_steps": 9, "horizon": 4}, 4),
        ({"max_episode_steps": 27}, 27),  # longer than the task's horizon
        ({"max_episode_steps": -1}, 25),
    ],
)
def test_gymnasiums_time_limit_and_the_horizon_end_an_episode_at_the_smaller_one(arguments, steps):
    env = gymnasium.make("switchyard/PickPlace-v0", task="lift-can", image_size=48, renderer="tiny", **arguments)
    env.reset(seed=0)
    assert [env.step(as_action(STILL))[3] for _ in range(steps)] == [False] * (steps - 1) + [True]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(as_action(STILL))
    env.close()


def test_success_at_gymnasiums_time_limit_is_rewarded(env):
    def steps_of(env, seed):
        task = TASKS["lift-can"]
        _, *steps = play(env, ScriptedPolicy(0.0), task, seed, np.random.default_rng(seed))
        return [(bool(step.info["successes"][task.index]), step.reward, step.done) for step in steps]

    solved = {seed: [success for success, *_ in steps_of(env, seed)] for seed in (1, 2, 3)}
    seed = next(seed for seed, successes in solved.items() if any(successes[:-1]))
    steps = solved[seed].index(True) + 1
    limited = gymnasium.wrappers.TimeLimit(env, steps)
    assert steps_of(limited, seed) == [(False, 0.0, False)] * (steps - 1) + [(True, 1.0, True)]


def test_the_terminate_command_terminates(env):
    env.reset(seed=0, options={"task": "lift-can"})
    _, reward, terminated, truncated, _ = env.step({"translation": np.zeros(3), "yaw": 0.0, "command": 3})
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert env.render().shape == (64, 64, 3)
    with pytest.raises(gymnasium.error.ResetNeeded, match="the episode has ended: call reset"):
        env.step(as_action(STILL))


def test_the_grippers_readings_are_vectors_of_one_as_libraries_expect(env):
    observation, info = env.reset(seed=0, options={"task": "place-bowl"})
    assert env.observation_space.contains(observation)
    batch, state = as_batch(observation, info), SceneState(info["state"])
    for name, value in (("gripper_closed", 1.0), ("gripper_height", state["gripper_position"][2])):
        assert observation[name].shape == batch[name].shape == (1,)
        assert batch[name].dtype == np.float32
        assert batch[name][0] == value


def test_without_a_task_each_reset_draws_one():
    env = PickPlaceEnv(image_size=48, renderer="tiny")
    indices = [env.reset(seed=seed)[1]["task_index"] for seed in range(12)]
    env.close()
    assert len(set(indices)) > 4


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0, 0, 0, 0, 4], r"action\[4\] is a command 0 to 3 \(none, close, open, terminate\), got 4"),
        ([0, 0, 0, 0, 0.5], r"action\[4\].*got 0\.5"),
        ([0, 0, 0, 0, -1], r"action\[4\].*got -1"),
        ([np.nan, 0, 0, 0, 0], r"action\[0\] \(x\) is nan"),
        ([0, 0, 0, np.inf, 0], r"action\[3\] \(yaw\) is inf"),
        ([0, 0, 0, 0], r"an action has 5 numbers, got shape \(4,\)"),
        ([0] * 6, r"an action has 5 numbers, got shape \(6,\)"),
    ],
)
def test_an_impossible_action_is_refused_by_index_and_value(env, action, message):
    env.reset(seed=0, options={"task": "lift-can"})
    with pytest.raises(ValueError, match=message):
        env.world.step(np.array(action, np.float32))


def test_an_action_beyond_the_bounds_is_clipped_to_them():
    clipped = actions.clip(np.array([1, -1, 0.01, 9, 2], np.float32))
    assert clipped.tolist() == pytest.approx([0.06, -0.06, 0.01, 0.6, 2])


def test_an_action_moves_the_gripper_by_its_translation(still_env):
    env = still_env
    env.reset(seed=0, options={"task": "lift-can"})
    before = env.world.snapshot()["gripper_position"].copy()
    env.world.step(np.array([0.03, -0.04, 0.02, 0.0, 0], np.float32))
    env.world.step(STILL)
    assert env.world.snapshot()["gripper_position"] - before == pytest.approx([0.03, -0.04, 0.02], abs=0.01)


def test_close_and_open_move_the_fingers(still_env):
    env = still_env
    env.reset(seed=0, options={"task": "lift-can"})
    for command, closed, low_m, high_m in ((actions.CLOSE, 1, 0.0, 0.01), (actions.OPEN, 0, 0.07, 0.081)):
        env.world.step(np.array([0, 0, 0, 0, command], np.float32))
        state = env.world.snapshot()
        assert state["gripper_closed"] == closed
        assert low_m - 1e-3 <= state["finger_width"] <= high_m


def test_noise_spoils_the_scripted_policy_but_not_always(env):
    successes = sum(run(env, ScriptedPolicy(1.5), TASK_NAMES[seed % 10], seed)[0] for seed in range(20))
    assert 2 <= successes <= 18


def test_the_crude_policy_fails_often_at_lifting_and_sometimes_at_placing(env):
    rewards = [run(env, CrudePolicy(), TASK_NAMES[seed % 10], seed)[0] for seed in range(60)]
    lifts = [reward for seed, reward in enumerate(rewards) if seed % 10 < 7]
    places = [reward for seed, reward in enumerate(rewards) if seed % 10 >= 7]
    assert 0.25 < np.mean(lifts) < 0.6
    assert 0.6 < np.mean(places) < 0.97


def test_the_aimless_policy_succeeds_at_other_tasks_as_often_as_at_its_own(env):
    own, others = 0, 0
    for seed in range(40):
        task = TASKS[TASK_NAMES[seed % 10]]
        run(env, AimlessPolicy(0.5), task.name, seed)
        successes = detect_successes(SceneState(env.world.snapshot().vector))
        own += successes[task.index]
        others += successes.any() and not successes[task.index]
    assert own >= 4  # of 3 to 5 objects, of 3 fixtures
    assert others >= 10


def test_a_delayed_world_executes_each_action_one_step_later(still_env):
    world = still_env.world
    rng = np.random.default_rng(0)
    scene = replace(draw_scene(TASKS["lift-can"], rng, "none"), delay_steps=1)
    world.reset(scene)
    start = world.snapshot()["gripper_position"].copy()
    world.step(np.array([0.0, 0.05, 0.0, 0.0, actions.CLOSE], np.float32))
    first = world.snapshot()
    assert first["gripper_position"] == pytest.approx(start, abs=1e-3)
    assert first["gripper_goal"] == pytest.approx(start + [0, 0.05, 0], abs=1e-3)
    assert first["gripper_closed"] == 0
    world.step(STILL)
    second = world.snapshot()
    assert second["gripper_position"] == pytest.approx(start + [0, 0.05, 0], abs=0.01)
    assert second["gripper_closed"] == 1


def test_actuation_noise_disturbs_a_motion_a_little_and_by_the_seed_alone():
    world = World(48, "tiny")
    ends = []
    for factors in ("none", "actuation", "actuation"):
        world.reset(draw_scene(TASKS["lift-can"], np.random.default_rng(3), factors))
        for _ in range(3):
            world.step(np.array([0.02, 0.02, 0.0, 0.1, 0], np.float32))
        ends.append(world.snapshot()["gripper_position"].copy())
    world.close()
    assert np.array_equal(ends[1], ends[2])
    assert 1e-4 < np.abs(ends[1] - ends[0]).max() < 0.02


def test_a_step_or_an_image_before_a_reset_is_refused():
    env = PickPlaceEnv("lift-can", 64, "tiny")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(env.action_space.sample())
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.render()
    with pytest.raises(ValueError, match=r"unknown option of reset 'tasks'.*Did you mean 'task'"):
        env.reset(options={"tasks": "lift-can"})
    env.reset(seed=0)
    with pytest.raises(ValueError, match="translation has 3 numbers"):
        env.step({"translation": [0.0, 0.0], "yaw": 0.0, "command": 0})
    env.close()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(env.action_space.sample())
    with pytest.raises(ValueError, match="horizon is at least 1, got 0"):
        PickPlaceEnv(horizon=0)
    with pytest.raises(ValueError, match=r"unknown render mode 'rgb_aray'.*Did you mean 'rgb_array'"):
        PickPlaceEnv(render_mode="rgb_aray")
