"""The replay buffer of online learners of states: every transition of several tasks learned side by side.

Shapes: `E` tasks learned side by side, `B` transitions of each in a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.transitions import TransitionDataset, empty_columns, record
from sim.benchmarks.spec import Benchmark, EnvStep

SAMPLED = ("observation", "action", "next_observation")


class ReplayBuffer:
    """Columns [E, steps, ...] of data/transitions.py, with the reward and the end of each task's own transitions."""

    def __init__(self, benchmark: Benchmark, tasks: tuple[str, ...], steps: int) -> None:
        self.columns = empty_columns(benchmark, len(tasks), steps)
        self.reward = np.zeros((len(tasks), steps), np.float32)
        self.done = np.zeros((len(tasks), steps), np.bool_)
        self.filled, self._benchmark = 0, benchmark
        self._tasks = [benchmark.tasks[benchmark.task_index(name)] for name in tasks]

    def add(self, member: int, before: NDArray[np.float32], action: NDArray[np.float32], step: EnvStep) -> bool:
        """One transition of one task; `filled` is the caller's to count. Whether the task's episode ends here."""
        task, index = self._tasks[member], (member, self.filled)
        record(self.columns, index, before, action, step, self._benchmark.task_index(task.name))
        self.reward[index] = (task.shaped_reward or task.reward)(step.quantities, action)
        ends = task.ends(step.quantities)
        self.done[index] = step.terminated or ends
        self.columns["episode_end"][index] |= ends
        return bool(self.columns["episode_end"][index])

    def state(self) -> dict[str, Tensor]:
        """The filled part, [E, filled, ...] by column."""
        columns = {**self.columns, "reward": self.reward, "done": self.done}
        return {name: torch.tensor(column[:, : self.filled]) for name, column in columns.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """From `state`. Episodes that were under way end with it."""
        self.filled = state["reward"].shape[1]
        for name, column in {**self.columns, "reward": self.reward, "done": self.done}.items():
            column[:, : self.filled] = state[name].numpy()
        self.columns["episode_end"][:, self.filled - 1] = True

    def sample(self, count: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """`count` transitions of each task: observation, action, next_observation, reward, done, [E, B, ...] each."""
        members = np.arange(len(self.reward))[:, None]
        chosen = rng.integers(self.filled, size=(len(members), count))
        batch = {name: torch.from_numpy(self.columns[name][members, chosen]) for name in SAMPLED}
        batch["reward"] = torch.from_numpy(self.reward[members, chosen])
        return batch | {"done": torch.from_numpy(self.done[members, chosen].astype(np.float32))}

    def first(self, steps: int, metadata: Mapping[str, Any]) -> TransitionDataset:
        """The first transitions of every task, one task after another; the episode under way ends with them."""
        kept = {name: column[:, :steps].copy() for name, column in self.columns.items()}
        kept["episode_end"][:, -1] = True
        columns = {name: column.reshape(-1, *column.shape[2:]) for name, column in kept.items()}
        return TransitionDataset(benchmark=self._benchmark, columns=columns, metadata=dict(metadata))
