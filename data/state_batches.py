"""Stratified batches of transitions for several target tasks (CDS, app. C.1), sampled from memory on the device.

Shapes: `E` members trained side by side, `B` transitions of all target tasks, `D` of the dataset, `N` tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.member_random import MemberRandom
from data.transitions import TransitionDataset
from sim.files import DatasetError


@dataclass
class StateBatch:
    """Transitions relabelled for their target tasks, each [E, B, ...] and grouped by target; the names are those of
    data.batches."""

    observation: Tensor  # float32 [..., S]
    next_observation: Tensor  # float32 [..., S]
    action: Tensor  # float32 [..., A]
    reward: Tensor  # float32, of the target task
    done: Tensor  # float32, 1 where nothing is bootstrapped for the target task
    success: Tensor  # float32, 1 where the next state is a success of the target task
    task_index: Tensor  # int64, target
    source_task_index: Tensor  # int64, the task that collected it
    episode: Tensor  # int64

    def of_members(self, members: slice) -> StateBatch:
        return StateBatch(**{field.name: getattr(self, field.name)[members] for field in fields(self)})

    def select(self, index: Tensor) -> StateBatch:
        """Rows [E, C] of each member."""
        member = torch.arange(len(index), device=index.device)[:, None]
        return StateBatch(**{field.name: getattr(self, field.name)[member, index] for field in fields(self)})

    @classmethod
    def concatenate(cls, parts: Sequence[StateBatch]) -> StateBatch:
        """The members of all parts, one part after another."""
        return cls(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})


class TransitionTensors:
    """A dataset on the device, shared by its samplers; reward, end and success of every task."""

    def __init__(self, dataset: TransitionDataset, device: torch.device | str = "cpu") -> None:
        self.dataset, self.device = dataset, device
        self.columns = {
            name: torch.from_numpy(dataset.columns[name]).to(device)
            for name in ("observation", "next_observation", "action", "task")
        }
        self.episode = torch.from_numpy(dataset.episode).to(device)
        self.by_task = {  # [D, N]
            "reward": torch.from_numpy(dataset.rewards).to(device),
            "done": torch.from_numpy(dataset.done.astype(np.float32)).to(device),
            "success": torch.from_numpy(dataset.successes.astype(np.float32)).to(device),
        }


class StateSampler:
    """Samples `per_task` transitions for each target task, uniformly: a fraction `shared` of them from the union of
    its sources, the others from its own."""

    def __init__(
        self,
        tensors: TransitionTensors,
        sources: NDArray[np.bool_],
        tasks: tuple[int, ...],
        per_task: int = 128,
        shared_fraction: float = 0.5,
        relabel_rewards: bool = True,
        candidates_per_shared: int = 1,
    ) -> None:
        """`sources[i, j]`: task i may draw from task j. `tasks`: trained tasks; others are neither target nor source.
        Without `relabel_rewards` shared transitions carry reward 0 (UDS). `candidates_per_shared`: transitions in the
        place of each shared one, for the router to resample."""
        self._tensors, self._relabel_rewards = tensors, relabel_rewards
        dataset, device = tensors.dataset, tensors.device
        task = dataset.columns["task"]
        self._pools: list[list[tuple[Tensor, int]]] = []  # of each target: (transitions, how many of them in a batch)
        for target in tasks:
            own = np.flatnonzero(task == target)
            if not len(own):
                raise DatasetError(f"the dataset holds no step of task {dataset.benchmark.task_names[target]}")
            shared_from = [j for j in np.flatnonzero(sources[target]) if j in tasks and j != target]
            others = np.flatnonzero(np.isin(task, shared_from))
            num_shared = round(per_task * shared_fraction) if len(others) else 0
            counts = ((own, per_task - num_shared), (others, candidates_per_shared * num_shared))
            self._pools.append([(torch.from_numpy(pool).to(device), count) for pool, count in counts if count])
        size = torch.tensor([sum(count for _, count in pools) for pools in self._pools], device=device)
        self._target = torch.tensor(tasks, device=device).repeat_interleave(size)

    def sample(self, random: MemberRandom) -> StateBatch:
        """A batch for each member, by its own numbers.

        Row floor(u n) of n, with u of 53 bits: the odds of two rows differ by less than n / 2^53 of themselves."""
        pools = [each for pools in self._pools for each in pools]
        drawn = random.uniform(len(self._target), dtype=torch.float64).split([count for _, count in pools], 1)
        row = torch.cat([pool[(u * len(pool)).long()] for (pool, _), u in zip(pools, drawn, strict=True)], dim=1)
        columns, target = self._tensors.columns, self._target.expand(random.members, -1)
        source = columns["task"][row]
        relabelled = {name: table[row, target] for name, table in self._tensors.by_task.items()}
        if not self._relabel_rewards:
            relabelled["reward"] = torch.where(source == target, relabelled["reward"], 0.0)
        return StateBatch(
            **{name: columns[name][row] for name in ("observation", "next_observation", "action")},
            **relabelled,
            task_index=target,
            source_task_index=source,
            episode=self._tensors.episode[row],
        )
