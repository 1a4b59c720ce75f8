"""Locomotion: one body, several rewards (CDS, app. C.2). A reward is a pure function of named quantities of a step, so
that any stored step can be rewarded for any task.

Shapes: `T` steps, `S` numbers of an observation, `A` of an action in [-1, 1], `N` tasks.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.options import check_choice

HORIZON = 1000  # steps of an episode that does not end before


class Motion(NamedTuple):
    """What rewards are made of: forward velocity (m/s) over the step, height (m) of the torso above where it began,
    both [...], and the action [..., A]."""

    velocity: NDArray[np.float32]
    rise: NDArray[np.float32]
    action: NDArray[np.float32]


Reward = Callable[[Motion], NDArray[np.float32]]


def run_forward(motion: Motion) -> NDArray[np.float32]:
    """v_x - 0.001 |a|^2"""
    return motion.velocity - _effort(motion)


def run_backward(motion: Motion) -> NDArray[np.float32]:
    """-v_x - 0.001 |a|^2"""
    return -motion.velocity - _effort(motion)


def jump(motion: Motion) -> NDArray[np.float32]:
    """-|v_x| - 0.001 |a|^2 + 10 (z - z_0)"""
    return -np.abs(motion.velocity) - _effort(motion) + 10 * motion.rise


def _effort(motion: Motion) -> NDArray[np.float32]:
    return 0.001 * np.square(motion.action).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Body:
    """A Gymnasium environment and the rewards of its tasks by name; their order is the one-hot order."""

    name: str
    env: str
    observation_size: int
    action_size: int
    tasks: dict[str, Reward]

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(self.tasks)

    def rewards(self, motion: Motion) -> NDArray[np.float32]:
        """[..., N] of every task."""
        return np.stack([reward(motion) for reward in self.tasks.values()], axis=-1).astype(np.float32)


BODIES: dict[str, Body] = {
    body.name: body
    for body in (
        Body(
            name="walker2d",
            env="Walker2d-v5",
            observation_size=17,
            action_size=6,
            tasks={"run-forward": run_forward, "run-backward": run_backward, "jump": jump},
        ),
    )
}


def body_by_name(name: str) -> Body:
    """ValueError with the nearest name for one that does not exist."""
    check_choice("body", name, tuple(BODIES))
    return BODIES[name]


class Step(NamedTuple):
    """What one step led to. `fell`: the body is in no state to go on, which ends the episode for good; at the horizon
    it ends without that."""

    observation: NDArray[np.float32]
    motion: Motion
    fell: bool
    ended: bool


class Walk:
    """An episode after another of one body; needs MuJoCo (pip install -e '.[lowdim]')."""

    def __init__(self, body: Body) -> None:
        missing = f"{body.name} needs MuJoCo: pip install -e '.[lowdim]'"
        try:
            import gymnasium
            import mujoco
        except ImportError:
            raise ValueError(missing) from None
        try:
            self._env: Any = gymnasium.make(body.env, max_episode_steps=HORIZON)
        except (ImportError, gymnasium.error.DependencyNotInstalled):
            raise ValueError(missing) from None

        mujoco.set_mju_user_warning(_warn)  # MuJoCo's own writes MUJOCO_LOG.TXT into the working folder

    def reset(self, seed: int | None = None) -> NDArray[np.float32]:
        """The first observation [S]; without a seed, of the next episode in the row."""
        observation, _ = self._env.reset(seed=seed)
        return observation.astype(np.float32)

    def step(self, action: NDArray[np.float32]) -> Step:
        observation, _, fell, too_long, info = self._env.step(action)
        velocity, rise = (np.asarray(info[key], np.float32) for key in ("x_velocity", "z_distance_from_origin"))
        return Step(observation.astype(np.float32), Motion(velocity, rise, action), fell, fell or too_long)

    def close(self) -> None:
        self._env.close()


@functools.cache
def _warn(message: str | bytes) -> None:
    """Once in a process."""
    print(f"MuJoCo: {message.decode() if isinstance(message, bytes) else message}", file=sys.stderr)
