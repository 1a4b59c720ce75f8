"""The interface of a state benchmark. An environment reports named quantities of each step; every task's reward,
success and end is a pure function of them, so any stored step can be relabelled for any task without a simulator.

Shapes: `...` leading dimensions (none for a live step, [D] for a dataset), `S` observation and `A` action dimensions,
`N` tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.options import check_choice

Quantities = Mapping[str, NDArray[np.float32]]  # name -> [..., *shape], after the step
Reward = Callable[[Quantities, NDArray[np.float32]], NDArray[np.float32]]  # quantities, action [..., A] -> [...]
Condition = Callable[[Quantities], NDArray[np.bool_]]  # quantities -> [...]
METRICS = ("return", "success")


class MissingSimulatorError(ValueError):
    """A benchmark's environment needs a package that is not installed; the message names the remedy."""


class EnvStep(NamedTuple):
    """Outcome of one action. `terminated`: the state is absorbing for every task, so nothing is bootstrapped;
    `truncated`: the horizon was reached."""

    observation: NDArray[np.float32]  # [S]
    quantities: Quantities
    terminated: bool
    truncated: bool


class StateEnv(Protocol):
    """One environment of a benchmark, for every task of it. One that MuJoCo simulates also has `simulation()`, its
    model and data, for films."""

    def reset(self, task: str, seed: int | None = None) -> NDArray[np.float32]:
        """First observation [S] of a new episode of this task. A seed determines this and later episodes."""
        ...

    def step(self, action: NDArray[np.float32]) -> EnvStep:
        """`action` [A] in [-1, 1]."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class StateTask:
    """A task of a benchmark. Rule `skill` shares between tasks of one `skill`; by default each task is its own.

    `success`: the goal is reached; `terminal`: an episode of this task ends here. None: never. `shaped_reward`: what
    online learners take in place of a sparse reward."""

    name: str
    reward: Reward
    skill: str = ""
    success: Condition | None = None
    terminal: Condition | None = None
    shaped_reward: Reward | None = None

    def ends(self, quantities: Quantities) -> bool:
        """Whether a live episode of this task ends after this step."""
        return self.terminal is not None and bool(self.terminal(quantities))


@dataclass(frozen=True, kw_only=True)
class Controller:
    """A scripted policy of a benchmark's tasks. `command`: task, observations [..., S] -> actions [..., A]; or, with a
    `follower`, observations of that benchmark, whose policies have the same actions."""

    command: Callable[[str, NDArray[np.float32]], NDArray[np.float32]]
    follower: str = ""  # name of a benchmark


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A set of tasks in one environment; their order is the one-hot order.

    `quantities`: shape of each named quantity of a step (units in the names). `metric`: what evaluation reports, the
    undiscounted return or the success rate. `make_env` may need packages that training from disk does without:
    MissingSimulatorError. `make_collecting_env`: where data begin otherwise than evaluation. `nearest_task`: quantities
    -> index [...] of the task whose goal is the nearest, for data that are assigned by it."""

    name: str
    observation_size: int
    action_size: int
    horizon: int
    quantities: dict[str, tuple[int, ...]]
    tasks: tuple[StateTask, ...]
    make_env: Callable[[], StateEnv] = field(repr=False)
    make_collecting_env: Callable[[], StateEnv] | None = field(default=None, repr=False)
    metric: str = "return"
    controller: Controller | None = None
    nearest_task: Callable[[Quantities], NDArray[np.int64]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, METRICS)
        assert len(set(self.task_names)) == len(self.tasks), f"{self.name}: two tasks of one name"
        assert self.metric == "return" or all(task.success for task in self.tasks), f"{self.name}: a task lacks success"

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    @property
    def skills(self) -> tuple[str, ...]:
        return tuple(task.skill or task.name for task in self.tasks)

    def collecting_env(self) -> StateEnv:
        return (self.make_collecting_env or self.make_env)()

    def task_index(self, name: str) -> int:
        """ValueError with the nearest name for a task that does not exist."""
        return self.task_names.index(check_choice("task", name, self.task_names))

    def rewards(self, quantities: Quantities, action: NDArray[np.float32]) -> NDArray[np.float32]:
        """Reward of every task, float32 [..., N]."""
        return np.stack([task.reward(quantities, action) for task in self.tasks], axis=-1).astype(np.float32)

    def successes(self, quantities: Quantities) -> NDArray[np.bool_]:
        """Whether each task's goal is reached, [..., N]; False for tasks without one."""
        return self._conditions([task.success for task in self.tasks], quantities)

    def terminals(self, quantities: Quantities) -> NDArray[np.bool_]:
        """Whether an episode of each task ends here, [..., N]."""
        return self._conditions([task.terminal for task in self.tasks], quantities)

    def _conditions(self, conditions: list[Condition | None], quantities: Quantities) -> NDArray[np.bool_]:
        name, shape = next(iter(self.quantities.items()))
        lead = np.shape(quantities[name])[: np.ndim(quantities[name]) - len(shape)]
        holds = [condition(quantities) if condition else np.zeros(lead, np.bool_) for condition in conditions]
        return np.stack(holds, axis=-1)
