"""A benchmark without a simulator: a point on a line that moves left or right by the sign of its action.

Places 0, 1, 2. The task `right` is reached at 2 and ends there, `left` at 0; each pays 1 there.
"""

from __future__ import annotations

import numpy as np

from sim.benchmarks.spec import Benchmark, EnvStep, StateTask

PLACES = 3


def at(place):
    return lambda q: np.asarray(q["place"] == place)


def reward_at(place):
    return lambda q, action: np.asarray(q["place"] == place, np.float32)


class LineEnv:
    def __init__(self):
        self.rng, self.place, self.steps = np.random.default_rng(), 0, 0

    def reset(self, task, seed=None):
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.place, self.steps = int(self.rng.integers(PLACES)), 0
        return observe(self.place)

    def step(self, action):
        self.place = int(move(self.place, action[0]))
        self.steps += 1
        quantities = {"place": np.float32(self.place)}
        return EnvStep(observe(self.place), quantities, False, self.steps == LINE.horizon)

    def close(self):
        pass


def observe(place):
    return np.eye(PLACES, dtype=np.float32)[place]


def move(place, action):
    return np.clip(place + np.where(action > 0, 1, -1), 0, PLACES - 1)


LINE = Benchmark(
    name="line",
    observation_size=PLACES,
    action_size=1,
    horizon=6,
    quantities={"place": ()},
    tasks=(
        StateTask(name="right", reward=reward_at(2), success=at(2), terminal=at(2)),
        StateTask(name="left", reward=reward_at(0), success=at(0), terminal=at(0)),
    ),
    make_env=LineEnv,
    metric="success",
)
