"""The mazes: maps, ways, tasks that end for themselves, and a point that keeps out of walls."""

from __future__ import annotations

import numpy as np
import pytest

from sim.benchmarks.mazes import (
    CELL_M,
    LARGE,
    MEDIUM,
    POINT,
    POINT_LARGE,
    POINT_MEDIUM,
    POSITION,
    MazeEnv,
    direction,
    waypoints,
)

MAZES = [(MEDIUM, POINT_MEDIUM), (LARGE, POINT_LARGE)]


D4RL_MAPS = {  # 1: wall
    "medium": "11111111 10011001 10010001 11000111 10010001 10100101 10001001 11111111",
    "large": "111111111111 100001000001 101101010101 100000010001 101111011101 100101000001 110101010111 100100010001 "
    "111111111111",
}


@pytest.mark.parametrize("maze", [MEDIUM, LARGE])
def test_maps_are_those_of_antmaze(maze):
    assert [row.replace("#", "1").replace("R", "0").replace(".", "0") for row in maze.rows] == D4RL_MAPS[
        maze.name
    ].split()
    assert len(maze.free) == D4RL_MAPS[maze.name].count("0")
    assert maze.start == (1, 1)
    assert set(maze.goals) <= set(maze.free)
    assert maze.middle((2, 6)).tolist() == [20.0, 4.0]  # x by the column, y by the row


@pytest.mark.parametrize("maze", [MEDIUM, LARGE])
def test_waypoints_lead_from_every_cell_to_the_goal_by_a_shortest_way(maze):
    for goal in maze.goals:
        table, steps = waypoints(maze, goal), {goal: 0}
        for cell in maze.free:
            way = [cell]
            while way[-1] != goal:
                place = table[way[-1]]
                following = (round(float(place[1]) / CELL_M) + 1, round(float(place[0]) / CELL_M) + 1)
                assert following in maze.free
                assert abs(following[0] - way[-1][0]) + abs(following[1] - way[-1][1]) == 1
                way.append(following)
                assert len(way) < 50
            steps[cell] = len(way) - 1
        for (row, column), count in steps.items():
            around = [
                steps[c]
                for c in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1))
                if c in steps
            ]
            assert count == 0 or count == 1 + min(around)


def test_directions_are_of_length_one_and_of_many_places_at_once():
    goal = MEDIUM.goals[0]
    places = np.array([[0.0, 0.0], [0.3, -0.2], [-9.0, 80.0]])
    found = direction(MEDIUM, places, goal)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1.0] * 3)
    assert np.array_equal(found[1], direction(MEDIUM, places[1], goal))


@pytest.mark.parametrize(("maze", "benchmark"), MAZES)
def test_a_task_ends_where_its_goal_is_reached_and_for_itself_alone(maze, benchmark):
    goals = np.stack([maze.middle(cell) for cell in maze.goals])
    for offset, within in ((0.0, True), (0.49, True), (0.51, False)):
        q = {POSITION: goals + np.array([offset, 0.0], np.float32)}
        expected = np.eye(len(goals), dtype=bool) & within
        assert np.array_equal(benchmark.successes(q), expected)
        assert np.array_equal(benchmark.terminals(q), expected)
        assert np.array_equal(benchmark.rewards(q, np.zeros((len(goals), 2))), expected.astype(np.float32))


@pytest.mark.parametrize(("maze", "benchmark"), MAZES)
def test_the_waypoint_controller_reaches_every_goal_from_every_cell(maze, benchmark):
    pytest.importorskip("mujoco")
    env, rng = MazeEnv(POINT, maze), np.random.default_rng(0)
    env.reset("goal-0", 0)
    for number, goal in enumerate(maze.goals):
        for cell in [maze.start, *(maze.free[k] for k in rng.choice(len(maze.free), 4))]:
            observation, steps = env.reset_at(cell), 0
            while True:
                step = env.step(direction(maze, observation[:2], goal) + rng.normal(0, 0.2, 2))
                observation, steps = step.observation, steps + 1
                assert not step.truncated
                if benchmark.tasks[number].ends(step.quantities):
                    break
            assert steps > 1 or cell == goal


@pytest.mark.parametrize("maze", [MEDIUM, LARGE])
def test_the_point_keeps_out_of_walls_and_is_as_fast_as_it_says(maze):
    pytest.importorskip("mujoco")
    env, rng = MazeEnv(POINT, maze), np.random.default_rng(0)
    env.reset("goal-0", 0)
    middles = np.stack([maze.middle(cell) for cell in maze.free])
    fastest = 0.0
    for _ in range(100):
        action = rng.uniform(-1, 1, 2)
        for _ in range(20):
            observation = env.step(action / np.abs(action).max()).observation
            inside = np.abs(middles - observation[:2]).max(1) <= CELL_M / 2
            assert inside.any()
            fastest = max(fastest, np.abs(observation[2:]).max())
    assert fastest == pytest.approx(4.0, abs=0.05)


def test_the_same_seed_begins_alike():
    pytest.importorskip("mujoco")
    env = MazeEnv(POINT, MEDIUM)
    first, second, third = env.reset("goal-0", 3), env.reset("goal-0"), env.reset("goal-2", 3)
    assert np.array_equal(first, third)
    assert not np.array_equal(first, second)
    assert np.abs(first[:2]).max() <= 0.1
