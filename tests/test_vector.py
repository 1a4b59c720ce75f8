"""Vector environments: the same episodes as single environments, and observations that are never overwritten."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from sim.actions import NONE, TERMINATE
from sim.env import PickPlaceEnv
from sim.tasks import TASKS
from sim.vector import make_vector

TASK_CYCLE = ("lift-can", "place-bowl")
STILL = {"translation": np.zeros((2, 3)), "yaw": np.zeros(2), "command": np.zeros(2, np.int64)}


@pytest.fixture(scope="module")
def vector():
    envs = make_vector(2, TASK_CYCLE, "Disabled", image_size=48, renderer="tiny", horizon=3)
    yield envs
    envs.close()


def test_each_environment_is_the_one_it_would_be_alone(vector):
    observation, info = vector.reset(seed=[5, 6])
    assert info["task_index"].tolist() == [TASKS[name].index for name in TASK_CYCLE]
    action = {"translation": np.full((2, 3), 0.02), "yaw": np.full(2, 0.1), "command": np.zeros(2, np.int64)}
    after, _, _, _, info_after = vector.step(action)
    assert after["gripper_closed"].shape == after["gripper_height"].shape == (2, 1)
    for number, seed in enumerate((5, 6)):
        env = PickPlaceEnv(TASK_CYCLE[number], image_size=48, renderer="tiny", horizon=3)
        alone, alone_info = env.reset(seed=seed)
        assert np.array_equal(alone["image"], observation["image"][number])
        assert np.array_equal(alone_info["state"], info["state"][number])
        alone, _, _, _, alone_info = env.step({name: value[number] for name, value in action.items()})
        assert np.array_equal(alone["image"], after["image"][number])
        assert np.array_equal(alone_info["state"], info_after["state"][number])
        env.close()


def test_an_observation_stays_what_it_was_when_the_worlds_go_on(vector):
    observation, _ = vector.reset(seed=[1, 2])
    kept = observation["image"].copy()
    vector.step({"translation": np.full((2, 3), 0.05), "yaw": np.zeros(2), "command": np.zeros(2, np.int64)})
    assert np.array_equal(observation["image"], kept)


def test_one_environment_may_begin_again_while_the_other_goes_on(vector):
    vector.reset(seed=[1, 2])
    vector.step(STILL)
    _, _, terminated, truncated, info = vector.step(STILL | {"command": np.array([TERMINATE, NONE])})
    assert terminated.tolist() == [True, False]
    assert truncated.tolist() == [False, False]
    other = info["state"][1]
    _, info = vector.reset(seed=[9, None], options={"reset_mask": np.array([True, False])})
    _, _, _, truncated, info = vector.step(STILL)
    assert truncated.tolist() == [False, True]
    assert np.abs(info["state"][1] - other).max() < 0.5


def test_gymnasium_makes_the_same_vector_by_the_registered_name():
    envs = gymnasium.make_vec("switchyard/PickPlace-v0", num_envs=2, task="lift-can", image_size=48, renderer="tiny")
    assert isinstance(envs, AsyncVectorEnv)
    observation, _ = envs.reset(seed=3)
    assert observation["image"].shape == (2, 48, 48, 3)
    envs.close()


@pytest.mark.parametrize(
    ("kind", "arguments", "ends"),
    [
        (AsyncVectorEnv, {"autoreset_mode": "NextStep"}, [0, 0, 1, 0, 0, 0, 1]),  # a reset takes a step
        (AsyncVectorEnv, {"autoreset_mode": AutoresetMode.SAME_STEP, "horizon": 2}, [0, 1, 0, 1, 0, 1, 0]),
        (AsyncVectorEnv, {"vectorization_mode": "vector_entry_point", "horizon": 9}, [0, 0, 1, 0, 0, 0, 1]),
        (SyncVectorEnv, {"vectorization_mode": "sync"}, [0, 0, 1, 0, 0, 0, 1]),
        (
            AsyncVectorEnv,
            {"vectorization_mode": "async", "vector_kwargs": {"context": "spawn", "autoreset_mode": "SameStep"}},
            [0, 0, 1, 0, 0, 1, 0],
        ),
    ],
)
def test_gymnasiums_arguments_mean_what_they_mean_elsewhere(kind, arguments, ends):
    env_options = {"task": "lift-can", "image_size": 48, "renderer": "tiny", "render_mode": "rgb_array"}
    envs = gymnasium.make_vec("switchyard/PickPlace-v0", num_envs=2, max_episode_steps=3, **env_options, **arguments)
    assert type(envs) is kind
    envs.reset(seed=0)
    assert [int(envs.step(STILL)[3].all()) for _ in ends] == ends
    assert [image.shape for image in envs.render()] == [(48, 48, 3)] * 2
    envs.close()


def test_without_autoreset_a_step_after_the_end_is_refused():
    envs = make_vector(2, "lift-can", "Disabled", image_size=48, renderer="tiny", horizon=1)
    envs.reset(seed=[1, 2])
    assert envs.step(STILL)[3].all()
    with pytest.raises(ResetNeeded, match="the episode has ended: call reset"):
        envs.step(STILL)
    envs.close()


def test_a_mistake_in_the_arguments_is_said_by_the_parent():
    with pytest.raises(ValueError, match=r"unknown task 'lift-cann'.*Did you mean 'lift-can'"):
        make_vector(2, ("lift-can", "lift-cann"), image_size=48)
    with pytest.raises(ValueError, match=r"unknown autoreset mode 'NextStp'.*Did you mean 'NextStep'"):
        make_vector(2, autoreset_mode="NextStp", image_size=48)
    with pytest.raises(ValueError, match="horizon is at least 1, got 0"):
        make_vector(2, max_episode_steps=0, image_size=48, renderer="tiny")
    with pytest.raises(ValueError, match="at least one task"):
        make_vector(2, (), image_size=48)
