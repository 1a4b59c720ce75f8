"""Locomotion (CDS, app. C.2): three bodies of Gymnasium's MuJoCo environments, three rewards each.

Rewards, with x velocity v (m/s), action a, height z of the torso above its nominal start z0 (m), and squared contact
forces c:

| task         | walker2d                       | halfcheetah              | ant                                      |
| ------------ | ------------------------------ | ------------------------ | ---------------------------------------- |
| run-forward  | v - 0.001 a^2                  | min(v, 3) - 0.1 a^2      | v - 0.5 a^2 - 0.005 c                    |
| run-backward | -v - 0.001 a^2                 | min(-v, 3) - 0.1 a^2     | -v - 0.5 a^2 - 0.005 c                   |
| jump         | -|v| - 0.001 a^2 + 10 (z - z0) | -0.1 a^2 + 15 (z - z0)   | -|v| - 0.5 a^2 - 0.005 c + 10 (z - z0)   |

The paper prints max{v, 3} for halfcheetah, by which standing still earns 3 a step; MOPO (arXiv:2005.13239), where these
tasks come from, calls 3 the maximum velocity. The paper's ant had contact forces of 0 (openai/gym #1541); here they are
measured, and left out of the observation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.benchmarks.simulator import REMEDY, load_mujoco
from sim.benchmarks.spec import Benchmark, EnvStep, MissingSimulatorError, Quantities, StateTask

HORIZON = 1000  # steps of an episode that does not terminate
MAX_RUN_VELOCITY_M_S = 3.0  # that halfcheetah's rewards pay for
V, DZ, CONTACT = "x_velocity_m_s", "height_above_start_m", "contact_force_squared"  # forces clipped to [-1, 1]

Array = NDArray[np.float32]
Read = Callable[[Array, dict[str, Any]], Quantities]  # observation [S] and Gymnasium's info of a step


def effort(action: Array) -> Array:
    """Squared norm of actions [..., A]: [...]."""
    return np.square(action).sum(-1)


# ---------------------------------------------------------------- walker2d


def walker2d_forward(q: Quantities, action: Array) -> Array:
    return q[V] - 0.001 * effort(action)


def walker2d_backward(q: Quantities, action: Array) -> Array:
    return -q[V] - 0.001 * effort(action)


def walker2d_jump(q: Quantities, action: Array) -> Array:
    return -np.abs(q[V]) - 0.001 * effort(action) + 10 * q[DZ]


# ---------------------------------------------------------------- halfcheetah


def halfcheetah_forward(q: Quantities, action: Array) -> Array:
    return np.minimum(q[V], MAX_RUN_VELOCITY_M_S) - 0.1 * effort(action)


def halfcheetah_backward(q: Quantities, action: Array) -> Array:
    return np.minimum(-q[V], MAX_RUN_VELOCITY_M_S) - 0.1 * effort(action)


def halfcheetah_jump(q: Quantities, action: Array) -> Array:
    return -0.1 * effort(action) + 15 * q[DZ]


# ---------------------------------------------------------------- ant


def ant_forward(q: Quantities, action: Array) -> Array:
    return q[V] - 0.5 * effort(action) - 0.005 * q[CONTACT]


def ant_backward(q: Quantities, action: Array) -> Array:
    return -q[V] - 0.5 * effort(action) - 0.005 * q[CONTACT]


def ant_jump(q: Quantities, action: Array) -> Array:
    return -np.abs(q[V]) - 0.5 * effort(action) - 0.005 * q[CONTACT] + 10 * q[DZ]


# ---------------------------------------------------------------- environment


class MuJoCoEnv:
    """A Gymnasium environment as a `StateEnv`; needs MuJoCo (pip install -e '.[lowdim]'). A reset of any task is the
    same."""

    def __init__(self, name: str, read: Read, options: dict[str, Any]) -> None:
        load_mujoco(name)
        import gymnasium

        try:
            self._env: Any = gymnasium.make(name, max_episode_steps=HORIZON, **options)
        except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
            raise MissingSimulatorError(f"{name}: {error}; {REMEDY}") from None
        self._read = read

    def reset(self, task: str, seed: int | None = None) -> Array:
        observation, _ = self._env.reset(seed=seed)
        return observation.astype(np.float32)

    def step(self, action: Array) -> EnvStep:
        observation, _, terminated, truncated, info = self._env.step(action)
        return EnvStep(observation.astype(np.float32), self._read(observation, info), bool(terminated), bool(truncated))

    def close(self) -> None:
        self._env.close()

    def simulation(self) -> tuple[Any, Any]:
        return self._env.unwrapped.model, self._env.unwrapped.data


def read_motion(start_height_m: float, observation: Array, info: dict[str, Any]) -> Quantities:
    """All three bodies observe the height of the torso first."""
    values = {V: info["x_velocity"], DZ: observation[0] - start_height_m}
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


def read_ant(start_height_m: float, observation: Array, info: dict[str, Any]) -> Quantities:
    """Motion and contact forces, of an environment whose contact cost has weight 1."""
    return {**read_motion(start_height_m, observation, info), CONTACT: np.asarray(-info["reward_contact"], np.float32)}


# ---------------------------------------------------------------- records

# Ant does not terminate: Gymnasium ends it above 1 m, and where nothing rewards being alive, ending pays.
ANT_OPTIONS = {
    "terminate_when_unhealthy": False,
    "include_cfrc_ext_in_observation": False,
    "contact_cost_weight": 1.0,
}

WALKER2D = Benchmark(
    name="walker2d",
    observation_size=17,
    action_size=6,
    horizon=HORIZON,
    quantities={V: (), DZ: ()},
    tasks=(
        StateTask(name="run-forward", reward=walker2d_forward),
        StateTask(name="run-backward", reward=walker2d_backward),
        StateTask(name="jump", reward=walker2d_jump),
    ),
    make_env=functools.partial(MuJoCoEnv, "Walker2d-v5", functools.partial(read_motion, 1.25), {}),
)
HALFCHEETAH = Benchmark(
    name="halfcheetah",
    observation_size=17,
    action_size=6,
    horizon=HORIZON,
    quantities={V: (), DZ: ()},
    tasks=(
        StateTask(name="run-forward", reward=halfcheetah_forward),
        StateTask(name="run-backward", reward=halfcheetah_backward),
        StateTask(name="jump", reward=halfcheetah_jump),
    ),
    make_env=functools.partial(MuJoCoEnv, "HalfCheetah-v5", functools.partial(read_motion, 0.0), {}),
)
ANT = Benchmark(
    name="ant",
    observation_size=27,
    action_size=8,
    horizon=HORIZON,
    quantities={V: (), DZ: (), CONTACT: ()},
    tasks=(
        StateTask(name="run-forward", reward=ant_forward),
        StateTask(name="run-backward", reward=ant_backward),
        StateTask(name="jump", reward=ant_jump),
    ),
    make_env=functools.partial(MuJoCoEnv, "Ant-v5", functools.partial(read_ant, 0.75), ANT_OPTIONS),
)
