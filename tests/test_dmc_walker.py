"""dm_control's walker: what it observes is dm_control's own, to the bit; what it earns is, in double precision."""

from __future__ import annotations

import numpy as np
import pytest

from sim.benchmarks.dmc_walker import DMC_WALKER, HEIGHT, UPRIGHT, VELOCITY, DMCWalkerEnv


@pytest.mark.parametrize("task", ["walk", "run"])
def test_observations_and_rewards_are_dm_controls(task):
    suite = pytest.importorskip("dm_control.suite")
    theirs, ours = suite.load("walker", task, task_kwargs={"random": 0}), DMCWalkerEnv()
    reward = DMC_WALKER.tasks[DMC_WALKER.task_index(task)].reward
    rng = np.random.default_rng(0)
    first = theirs.reset().observation
    assert np.array_equal(flat(first), ours.reset_to(theirs.physics.data.qpos.copy()))
    index = DMC_WALKER.task_index(task)
    for _ in range(1000):
        action = rng.uniform(-1, 1, 6)
        step, found = theirs.step(action), ours.step(action)
        assert np.array_equal(flat(step.observation), found.observation)
        assert reward(ours.measure(), action) == step.reward
        stored = DMC_WALKER.rewards(found.quantities, action)[index]  # from quantities in float32
        assert stored == pytest.approx(step.reward, abs=1e-6)
    assert found.truncated
    assert step.last()


def flat(observation):
    return np.concatenate([np.ravel(value) for value in observation.values()]).astype(np.float32)


def test_rewards_by_hand():
    q = {HEIGHT: np.array([1.3, 0.6, 1.2]), UPRIGHT: np.array([1.0, 0.0, -1.0]), VELOCITY: np.array([4.0, 4.0, -1.0])}
    stand = np.array([1.0, (3 * 0.1 + 0.5) / 4, 0.75])
    walk, run = DMC_WALKER.rewards(q, np.zeros((3, 6), np.float32)).T
    assert walk == pytest.approx(stand * [1, 1, 1 / 6])
    assert run == pytest.approx(stand * [(5 * 0.5 + 1) / 6, (5 * 0.5 + 1) / 6, 1 / 6])


def test_an_episode_begins_in_any_pose():
    pytest.importorskip("mujoco")
    pytest.importorskip("dm_control")
    env = DMCWalkerEnv()
    heights = [env.reset("walk", seed)[14] for seed in range(3)]
    tilts = np.array([env.reset("walk", seed)[0] for seed in range(200)])
    assert heights == [pytest.approx(1.3)] * 3  # the torso's own joints place it
    assert tilts.min() < -0.9
    assert tilts.max() > 0.9
