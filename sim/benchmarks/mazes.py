"""Mazes of D4RL (Fu et al. 2020, arXiv:2004.07219), where a body reaches one of several goals; here, with a point.

Maps, goals, size of a cell and radius of success are those of AntMaze there (medium and large). The point is the ant's
cheap twin, of the navigation alone. A task ends for itself where its goal is reached; the steps after it serve the
others. Positions are in m: x along the columns of a map, y along its rows, from the middle of the start cell. Needs
MuJoCo.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.benchmarks.simulator import load_mujoco
from sim.benchmarks.spec import Benchmark, Controller, EnvStep, Quantities, StateTask

Array = NDArray[np.float32]
Cell = tuple[int, int]  # row, column
CELL_M, RADIUS_M = 4.0, 0.5  # side of a cell; distance from a goal that is a success
START_NOISE = 0.1  # m, radians, m/s
WALL_HEIGHT_M = 2.0
POSITION = "position_m"
POINT_COLOUR = [0.1, 0.3, 0.7, 1.0]
POINT_RADIUS_M, STEP_S, FRAME_SKIP = 0.4, 0.02, 5  # of the point; 0.1 s a step, as the ant's


@dataclass(frozen=True, kw_only=True)
class Maze:
    """Rows of a map: `#` a wall, `R` the start, other characters are free."""

    name: str
    rows: tuple[str, ...]
    goals: tuple[Cell, ...]

    @functools.cached_property
    def start(self) -> Cell:
        return next(cell for cell in self.free if self.rows[cell[0]][cell[1]] == "R")

    @functools.cached_property
    def free(self) -> tuple[Cell, ...]:
        every = itertools.product(range(len(self.rows)), range(len(self.rows[0])))
        return tuple((row, column) for row, column in every if self.rows[row][column] != "#")

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(f"goal-{number}" for number in range(len(self.goals)))

    def middle(self, cell: Cell) -> Array:
        """Middle of a cell, m: [2]."""
        row, column = self.start
        return np.array([CELL_M * (cell[1] - column), CELL_M * (cell[0] - row)], np.float32)

    def walls(self) -> Iterator[tuple[Cell, int]]:
        """Runs of wall cells in a row: the first cell, and how many."""
        for row, text in enumerate(self.rows):
            column = 0
            for is_wall, run in itertools.groupby(text, key=lambda character: character == "#"):
                length = len(list(run))
                if is_wall:
                    yield (row, column), length
                column += length


MEDIUM = Maze(
    name="medium",
    rows=(
        "########",
        "#R.##..#",
        "#..#...#",
        "##...###",
        "#..#...#",
        "#.#..#.#",
        "#...#..#",
        "########",
    ),
    goals=((2, 6), (5, 1), (6, 5)),
)
LARGE = Maze(
    name="large",
    rows=(
        "############",
        "#R...#.....#",
        "#.##.#.#.#.#",
        "#......#...#",
        "#.####.###.#",
        "#..#.#.....#",
        "##.#.#.#.###",
        "#..#...#...#",
        "############",
    ),
    goals=((1, 6), (3, 5), (3, 10), (5, 2), (7, 4), (7, 6), (7, 9)),
)


@dataclass(frozen=True, kw_only=True)
class Body:
    """What is in a maze. `compiled`: MuJoCo model of a maze with it."""

    name: str
    compiled: Callable[[Maze], Any]
    observation_size: int
    action_size: int
    horizon: int


class MazeEnv:
    """A body in a maze. Observes its joints' positions, of which the first two are its own (m), and velocities.

    `anywhere`: episodes begin in any free cell, not in the start cell."""

    def __init__(self, body: Body, maze: Maze, *, anywhere: bool = False) -> None:
        self._mujoco, self._maze, self._anywhere = load_mujoco(body.name), maze, anywhere
        self._model: Any = body.compiled(maze)
        self._horizon = body.horizon
        self._data: Any = self._mujoco.MjData(self._model)
        self._rng, self._steps = np.random.default_rng(), 0

    def reset(self, task: str, seed: int | None = None) -> Array:
        """Every task begins alike."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        free = self._maze.free
        return self.reset_at(free[self._rng.integers(len(free))] if self._anywhere else self._maze.start)

    def reset_at(self, cell: Cell) -> Array:
        """Near the middle of a cell."""
        place_body(self._model, self._data, self._maze.middle(cell), self._rng)
        self._steps = 0
        return self._observe()

    def step(self, action: Array) -> EnvStep:
        self._data.ctrl[:] = np.clip(action, -1, 1)
        self._mujoco.mj_step(self._model, self._data, FRAME_SKIP)
        self._steps += 1
        observation = self._observe()
        quantities = {POSITION: observation[:2].copy()}
        return EnvStep(observation, quantities, terminated=False, truncated=self._steps == self._horizon)

    def close(self) -> None: ...

    def simulation(self) -> tuple[Any, Any]:
        return self._model, self._data

    def _observe(self) -> Array:
        return np.concatenate([self._data.qpos, self._data.qvel]).astype(np.float32)


def place_body(model: Any, data: Any, position: NDArray[np.floating], rng: np.random.Generator) -> None:
    """Put a body at a position [2], m, in its first pose with noise in all joints and velocities (Gymnasium's ant)."""
    import mujoco

    mujoco.mj_resetData(model, data)
    data.qpos[:] += rng.uniform(-START_NOISE, START_NOISE, model.nq)
    data.qpos[:2] += position
    data.qvel[:] = START_NOISE * rng.standard_normal(model.nv)
    mujoco.mj_forward(model, data)


def add_walls(spec: Any, maze: Maze, **options: Any) -> None:
    """The maze's walls as boxes of a MuJoCo MjSpec; `options` of their geoms."""
    import mujoco

    for (row, column), length in maze.walls():
        left, right = maze.middle((row, column)), maze.middle((row, column + length - 1))
        x, y = (left + right) / 2
        size = [CELL_M * length / 2, CELL_M / 2, WALL_HEIGHT_M / 2]
        spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, pos=[x, y, WALL_HEIGHT_M / 2], size=size, **options)


@functools.cache
def compiled_point(maze: Maze) -> Any:
    """A sphere on two slides, damped so that it keeps 4 m/s at full force: four times as fast as the ant."""
    import mujoco

    spec = mujoco.MjSpec()
    spec.option.timestep, spec.option.gravity = STEP_S, [0.0, 0.0, 0.0]
    add_walls(spec, maze, rgba=[0.5, 0.5, 0.5, 1.0])
    spec.worldbody.add_light(pos=[0.0, 0.0, 50.0], dir=[0.0, 0.0, -1.0], directional=True)
    plane, size = mujoco.mjtGeom.mjGEOM_PLANE, [100.0, 100.0, 1.0]
    spec.worldbody.add_geom(type=plane, size=size, rgba=[0.9, 0.9, 0.9, 1.0], contype=0, conaffinity=0)  # for films
    point = spec.worldbody.add_body(name="point", pos=[0.0, 0.0, 0.5])
    point.add_geom(
        type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[POINT_RADIUS_M, 0, 0], mass=1.0, friction=[0, 0, 0], rgba=POINT_COLOUR
    )
    for name, axis in (("x", [1, 0, 0]), ("y", [0, 1, 0])):
        point.add_joint(name=name, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=axis, damping=8.0)
        motor = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        motor.gear[0], motor.ctrlrange, motor.ctrllimited = 32.0, [-1.0, 1.0], True
    return spec.compile()


def _within(goal: Array, q: Quantities) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.linalg.norm(q[POSITION] - goal, axis=-1) <= RADIUS_M
    return found


def _reward(goal: Array, q: Quantities, action: Array) -> Array:
    return _within(goal, q).astype(np.float32)


def goal_tasks(maze: Maze) -> tuple[StateTask, ...]:
    """A task for each goal: reward 1 where it is reached, which ends that task's episode."""
    tasks = []
    for name, cell in zip(maze.task_names, maze.goals, strict=True):
        goal = maze.middle(cell)
        reached = functools.partial(_within, goal)
        reward = functools.partial(_reward, goal)
        tasks.append(StateTask(name=name, reward=reward, success=reached, terminal=reached))
    return tuple(tasks)


@functools.lru_cache(maxsize=64)
def waypoints(maze: Maze, goal: Cell) -> Array:
    """For every cell the middle of the next one on the way to the goal, breadth first; of a wall, that of the nearest
    free cell. [rows, columns, 2]"""
    known, queue, free = {goal: goal}, deque([goal]), set(maze.free)
    while queue:
        row, column = queue.popleft()
        for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if cell in free and cell not in known:
                known[cell] = (row, column)
                queue.append(cell)
    found = np.zeros((len(maze.rows), len(maze.rows[0]), 2), np.float32)
    for cell in itertools.product(range(found.shape[0]), range(found.shape[1])):
        nearest = min(known, key=lambda other: (other[0] - cell[0]) ** 2 + (other[1] - cell[1]) ** 2)
        found[cell] = maze.middle(known.get(cell, nearest))
    return found


def direction(maze: Maze, place: NDArray[np.floating], goal: Cell) -> Array:
    """Unit vectors [..., 2] from places [..., 2] to the next cell on the way to the goal (D4RL's controller)."""
    table, (row, column) = waypoints(maze, goal), maze.start
    nearest = np.rint(np.asarray(place) / CELL_M).astype(int) + (column, row)
    last = np.array(table.shape[1::-1]) - 1
    x, y = np.moveaxis(np.clip(nearest, 0, last), -1, 0)
    towards = table[y, x] - place
    unit: Array = (towards / np.linalg.norm(towards, axis=-1, keepdims=True).clip(1e-6)).astype(np.float32)
    return unit


def nearest_goal(maze: Maze, q: Quantities) -> NDArray[np.int64]:
    """Index [...] of the goal that is nearest to each position."""
    goals = np.stack([maze.middle(cell) for cell in maze.goals])
    found: NDArray[np.int64] = np.linalg.norm(q[POSITION][..., None, :] - goals, axis=-1).argmin(-1)
    return found


def goal_of(maze: Maze, task: str) -> Cell:
    """The goal's cell of a task of this maze."""
    return maze.goals[maze.task_names.index(task)]


def maze_benchmark(body: Body, maze: Maze, controller: Controller) -> Benchmark:
    """A body in a maze."""
    return Benchmark(
        name=f"{body.name}-{maze.name}",
        observation_size=body.observation_size,
        action_size=body.action_size,
        horizon=body.horizon,
        quantities={POSITION: (2,)},
        tasks=goal_tasks(maze),
        make_env=functools.partial(MazeEnv, body, maze),
        make_collecting_env=functools.partial(MazeEnv, body, maze, anywhere=True),
        metric="success",
        controller=controller,
        nearest_task=functools.partial(nearest_goal, maze),
    )


def push_towards(maze: Maze, task: str, observation: Array) -> Array:
    """The point's controller: full force along the way. Observations [..., 4] -> actions [..., 2]."""
    return direction(maze, observation[..., :2], goal_of(maze, task))


POINT = Body(name="pointmaze", compiled=compiled_point, observation_size=4, action_size=2, horizon=200)


def _point_maze(maze: Maze) -> Benchmark:
    return maze_benchmark(POINT, maze, Controller(command=functools.partial(push_towards, maze)))


POINT_MEDIUM, POINT_LARGE = _point_maze(MEDIUM), _point_maze(LARGE)
MAZES = {"pointmaze-medium": MEDIUM, "pointmaze-large": LARGE, "antmaze-medium": MEDIUM, "antmaze-large": LARGE}
