"""Plays an episode: the loop "reset, act, step, until done" over one environment and one policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from sim.env import as_action, as_batch
from sim.policies import Policy
from sim.tasks import TaskSpec


class EpisodeStep(NamedTuple):
    """The environment after a reset (`action` None, `reward` 0) or after an action [5]; `done` on the last one."""

    observation: dict[str, Any]
    info: dict[str, Any]
    action: NDArray[np.float32] | None
    reward: float
    done: bool


def play(
    env: gymnasium.Env[Any, Any], policy: Policy, task: TaskSpec, seed: int, rng: np.random.Generator
) -> Iterator[EpisodeStep]:
    """Yields the reset and every step of an episode. `seed` determines the scene, `rng` the policy's randomness."""
    observation, info = env.reset(seed=seed, options={"task": task.name})
    yield EpisodeStep(observation, info, None, 0.0, False)
    done = False
    while not done:
        action = policy.act(as_batch(observation, info), np.array([task.index]), rng)[0]
        observation, reward, terminated, truncated, info = env.step(as_action(action))
        done = terminated or truncated
        yield EpisodeStep(observation, info, action, float(reward), done)
