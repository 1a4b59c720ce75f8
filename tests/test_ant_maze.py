"""AntMaze: the ant is D4RL's, the direction-conditioned one is paid for its speed along the direction."""

from __future__ import annotations

import numpy as np
import pytest

from sim.benchmarks.ant_maze import (
    ANT_DIRECTION,
    ANT_MEDIUM,
    DIRECTION,
    NEW_DIRECTION_EVERY,
    VELOCITY,
    DirectedAntEnv,
    compiled_ant,
    direct_along,
)
from sim.benchmarks.mazes import FRAME_SKIP, MEDIUM


@pytest.fixture(autouse=True)
def mujoco():
    return pytest.importorskip("mujoco")


@pytest.mark.parametrize("maze", [None, MEDIUM])
def test_the_ant_is_d4rls(maze, mujoco):
    model = compiled_ant(maze)
    assert (model.nq, model.nv, model.nu) == (15, 14, 8)
    assert (model.actuator_gear[:, 0] == 30).all()
    assert model.opt.timestep * FRAME_SKIP == pytest.approx(0.1)
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
    boxes = model.geom_type == mujoco.mjtGeom.mjGEOM_BOX
    assert boxes.sum() == (0 if maze is None else len(list(MEDIUM.walls())))
    assert (model.geom_pos[boxes, 2] + model.geom_size[boxes, 2] == 2.0).all()


def test_walls_stop_the_ant():
    env = ANT_MEDIUM.make_env()
    env.reset("goal-0", 0)
    _, data = env.simulation()
    data.qvel[0] = -5.0
    places = [env.step(np.zeros(8, np.float32)).observation[0] for _ in range(30)]
    assert -2.1 < min(places) < -0.5  # the wall begins 2 m left of the start


def test_the_reward_is_the_speed_along_the_direction():
    q = {VELOCITY: np.array([[1.0, 2.0], [3.0, 0.0]]), DIRECTION: np.array([[0.6, 0.8], [-1.0, 0.0]])}
    assert ANT_DIRECTION.rewards(q, np.zeros((2, 8)))[:, 0] == pytest.approx([2.2, -3.0])


def test_a_step_is_paid_for_the_direction_it_was_told_and_directions_change():
    env, rng = DirectedAntEnv(), np.random.default_rng(0)
    now, seen = env.reset("walk", 0), []
    _, data = env.simulation()
    for number in range(2 * NEW_DIRECTION_EVERY):
        before = data.qpos[:2].copy()
        step = env.step(rng.uniform(-0.1, 0.1, 8).astype(np.float32))
        assert np.array_equal(step.quantities[DIRECTION], now[-2:])
        assert step.quantities[VELOCITY] == pytest.approx((data.qpos[:2] - before) / 0.1, abs=1e-4)
        assert np.array_equal(step.observation[-2:], now[-2:]) == ((number + 1) % NEW_DIRECTION_EVERY != 0)
        assert np.linalg.norm(step.observation[-2:]) == pytest.approx(1.0)
        now = step.observation
        seen.append(tuple(now[-2:]))
        if step.terminated:
            break
    assert len(set(seen)) >= 2


def test_an_ant_that_leaves_its_height_has_fallen():
    env = DirectedAntEnv()
    env.reset("walk", 0)
    assert not env.step(np.zeros(8, np.float32)).terminated
    _, data = env.simulation()
    data.qpos[2] = 1.5
    assert env.step(np.zeros(8, np.float32)).terminated


def test_the_controller_replaces_the_position_by_the_direction_to_the_next_cell():
    observation = np.arange(2 * 29, dtype=np.float32).reshape(2, 29)
    observation[:, :2] = [[0.0, 0.0], [0.5, -0.5]]  # in the start cell, whose way on leads right or down the map
    found = direct_along(MEDIUM, "goal-0", observation)
    assert found.shape == (2, 29)
    assert np.array_equal(found[:, :27], observation[:, 2:])
    assert np.linalg.norm(found[:, 27:], axis=1) == pytest.approx([1.0, 1.0])
    target = observation[0, :2] + 4 * found[0, 27:]
    assert target.round().tolist() in ([4.0, 0.0], [0.0, 4.0])
