"""AntMaze (D4RL, Fu et al. 2020, arXiv:2004.07219), and a direction-conditioned ant, which makes its data.

The ant is D4RL's: a torque of 30 Nm at most and steps of 0.1 s; that of gymnasium-robotics is five times as strong at
half the step. It is made of Gymnasium's model. Needs MuJoCo.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from sim.benchmarks.mazes import (
    FRAME_SKIP,
    LARGE,
    MEDIUM,
    STEP_S,
    Array,
    Body,
    Maze,
    add_walls,
    direction,
    goal_of,
    maze_benchmark,
    place_body,
)
from sim.benchmarks.simulator import load_mujoco
from sim.benchmarks.spec import Benchmark, Controller, EnvStep, Quantities, StateTask

GEAR_NM, HORIZON = 30.0, 1000
UPRIGHT_M = (0.2, 1.0)  # height of the torso, beyond which the directed ant's episode ends
NEW_DIRECTION_EVERY = 100  # steps
VELOCITY, DIRECTION = "velocity_m_s", "direction"


@functools.cache
def compiled_ant(maze: Maze | None) -> Any:
    """MuJoCo model of the ant, on a plane or in a maze."""
    import gymnasium
    import mujoco

    spec = mujoco.MjSpec.from_file(str(Path(gymnasium.__file__).parent / "envs/mujoco/assets/ant.xml"))
    spec.option.timestep = STEP_S
    for actuator in spec.actuators:
        actuator.gear[0] = GEAR_NM
    if maze is not None:
        add_walls(spec, maze, contype=1, conaffinity=1, condim=3)
    for geom in spec.geoms:
        geom.solref, geom.solimp = [0.02, 1.0], [0.8, 0.8, 0.01, 0.5, 2.0]
    return spec.compile()


class DirectedAntEnv:
    """The ant on a plane, with a direction that changes every `NEW_DIRECTION_EVERY` steps. Observes the ant without its
    position: [27], and the direction's unit vector: [2]."""

    def __init__(self) -> None:
        self._mujoco = load_mujoco("ant-direction")
        self._model: Any = compiled_ant(None)
        self._data: Any = self._mujoco.MjData(self._model)
        self._rng, self._steps = np.random.default_rng(), 0

    def reset(self, task: str, seed: int | None = None) -> Array:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        place_body(self._model, self._data, np.zeros(2), self._rng)
        self._steps, self._direction = 0, self._draw_direction()
        return self._observe()

    def step(self, action: Array) -> EnvStep:
        before = self._data.qpos[:2].copy()
        self._data.ctrl[:] = np.clip(action, -1, 1)
        self._mujoco.mj_step(self._model, self._data, FRAME_SKIP)
        self._steps += 1
        velocity = (self._data.qpos[:2] - before) / (FRAME_SKIP * STEP_S)
        quantities = {VELOCITY: velocity.astype(np.float32), DIRECTION: self._direction}
        if self._steps % NEW_DIRECTION_EVERY == 0:
            self._direction = self._draw_direction()
        fell = not UPRIGHT_M[0] <= self._data.qpos[2] <= UPRIGHT_M[1]
        return EnvStep(self._observe(), quantities, terminated=fell, truncated=self._steps == HORIZON)

    def close(self) -> None: ...

    def simulation(self) -> tuple[Any, Any]:
        return self._model, self._data

    def _draw_direction(self) -> Array:
        angle = self._rng.uniform(-np.pi, np.pi)
        return np.array([np.cos(angle), np.sin(angle)], np.float32)

    def _observe(self) -> Array:
        return np.concatenate([self._data.qpos[2:], self._data.qvel, self._direction]).astype(np.float32)


def _progress(q: Quantities, action: Array) -> Array:
    speed: Array = (q[VELOCITY] * q[DIRECTION]).sum(-1)
    return speed


ANT_DIRECTION = Benchmark(
    name="ant-direction",
    observation_size=29,
    action_size=8,
    horizon=HORIZON,
    quantities={VELOCITY: (2,), DIRECTION: (2,)},
    tasks=(StateTask(name="walk", reward=_progress),),  # m/s along the direction
    make_env=DirectedAntEnv,
)


def direct_along(maze: Maze, task: str, observation: Array) -> Array:
    """What the direction-conditioned ant observes, [..., 29], where its direction is the way to the task's goal, from
    observations [..., 29] in the maze."""
    way = direction(maze, observation[..., :2], goal_of(maze, task))
    return np.concatenate([observation[..., 2:], way], axis=-1)


ANT = Body(name="antmaze", compiled=compiled_ant, observation_size=29, action_size=8, horizon=HORIZON)


def _ant_maze(maze: Maze) -> Benchmark:
    controller = Controller(command=functools.partial(direct_along, maze), follower=ANT_DIRECTION.name)
    return maze_benchmark(ANT, maze, controller)


ANT_MEDIUM, ANT_LARGE = _ant_maze(MEDIUM), _ant_maze(LARGE)
