"""Batches: the tensors of one gradient step, and the sampler that draws them by task, source and outcome.

Each batch holds the same number of transitions for every trained task. A part of them is the task's own, the rest is
drawn from the tasks that the sharing rule allows; own transitions keep a constant share from successful episodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.replay import Replay
from data.sharing import SharingRule
from sim.tasks import SKILLS, TASK_NAMES


@dataclass
class Batch:
    """B transitions (s, a, r_i, s') for the target task i = `task_index`; j = `source_task_index` collected them."""

    image: Tensor  # uint8 [B, 3, H, W], stored size: not yet cropped
    next_image: Tensor  # uint8 [B, 3, H, W]
    gripper: Tensor  # float32 [B, 2]: closed (0/1), height (m)
    next_gripper: Tensor  # float32 [B, 2]
    action: Tensor  # float32 [B, 5], sim/actions.py
    reward: Tensor  # float32 [B], of the target task: 1 on the last step of an episode that its detector accepts
    done: Tensor  # float32 [B], 1 on the last step: the success is decided there, so nothing is bootstrapped
    success: Tensor  # float32 [B], whether the target task's detector accepts the end of the episode
    landmark: Tensor  # float32 [B, L, 5], privileged: where things are (sim/landmarks.py)
    landmark_present: Tensor  # bool [B, L]
    point: Tensor  # float32 [B, P, 2], privileged: where the stored frame shows them, in sides of the frame
    point_present: Tensor  # bool [B, P]
    task_index: Tensor  # int64 [B]
    source_task_index: Tensor  # int64 [B]
    is_shared: Tensor  # bool [B], drawn from another task

    def to(self, device: torch.device | str) -> Batch:
        return Batch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    def pin_memory(self) -> Batch:
        return Batch(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})

    def __len__(self) -> int:
        return len(self.task_index)


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """`per_task` transitions for each task; `shared` is the part drawn from others, `success` that of own successes."""

    per_task: int
    shared: float = 0.5
    success: float = 0.5


class Sampler:
    """Draws step numbers for whole batches: a pure function of the generator it is given."""

    def __init__(self, replay: Replay, tasks: tuple[int, ...], rule: SharingRule, config: SamplerConfig) -> None:
        self._replay, self._tasks, self._config = replay, tasks, config
        allowed = rule.sources(SKILLS)
        task_of_step = replay.episode_task[replay.step_episode]
        self._own: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._others: list[NDArray[np.int64]] = []
        for task in tasks:
            own = task_of_step == task
            if not own.any():
                raise ValueError(f"{replay.folder}: holds no episode of task {TASK_NAMES[task]}; train without it")
            won = replay.success[replay.step_episode, task]
            self._own.append((np.flatnonzero(own & won), np.flatnonzero(own & ~won)))
            sources = np.array([j for j in tasks if j != task and allowed[task, j]], np.int64)
            self._others.append(np.flatnonzero(np.isin(task_of_step, sources)))

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(steps [B], target tasks [B]) of one batch, grouped by task."""
        steps, targets = [], []
        for task, (won, lost), others in zip(self._tasks, self._own, self._others, strict=True):
            size = self._config.per_task
            num_shared = _part_of(size, self._config.shared, rng) if len(others) else 0
            num_won = _part_of(size - num_shared, self._config.success, rng)
            if not len(won) or not len(lost):
                num_won = (size - num_shared) if len(won) else 0
            for pool, count in ((won, num_won), (lost, size - num_shared - num_won), (others, num_shared)):
                if count:
                    steps.append(pool[rng.integers(len(pool), size=count)])
            targets.append(np.full(size, task, np.int64))
        return np.concatenate(steps), np.concatenate(targets)

    def load(self, steps: NDArray[np.int64], targets: NDArray[np.int64]) -> Batch:
        """Read and decode the transitions of these steps, with the reward of the target task."""
        replay = self._replay
        episode = replay.step_episode[steps]
        frame = steps + episode
        unique, where = np.unique(np.concatenate([frame, frame + 1]), return_inverse=True)
        images = torch.from_numpy(replay.frames(unique)[where]).permute(0, 3, 1, 2)
        done = replay.step_is_last[steps]
        success = replay.success[episode, targets]
        source = replay.episode_task[episode]
        size = len(steps)

        def tensor(array: NDArray[Any], kind: Any = np.float32) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, kind))

        return Batch(
            image=images[:size].contiguous(),
            next_image=images[size:].contiguous(),
            gripper=tensor(replay.gripper[frame]),
            next_gripper=tensor(replay.gripper[frame + 1]),
            action=tensor(replay.action[steps]),
            reward=tensor(done & success),
            done=tensor(done),
            success=tensor(success),
            landmark=tensor(replay.landmark[frame]),
            landmark_present=tensor(replay.landmark_present[frame], np.bool_),
            point=tensor(replay.point[frame]),
            point_present=tensor(replay.point_present[frame], np.bool_),
            task_index=tensor(targets, np.int64),
            source_task_index=tensor(source, np.int64),
            is_shared=tensor(source != targets, np.bool_),
        )


def _part_of(size: int, part: float, rng: np.random.Generator) -> int:
    """`part` of `size`, rounded at random so that small batches keep the share on average."""
    return int(size * part + rng.random())


class BatchStream(torch.utils.data.IterableDataset[Batch]):
    """An endless stream of batches; batch number n depends on (seed, rank, n) alone, so a resumed run continues it."""

    def __init__(self, sampler: Sampler, seed: int, first: int = 0, rank: int = 0) -> None:
        self._sampler, self._seed, self._rank = sampler, seed, rank
        self.first = first

    def __iter__(self) -> Iterator[Batch]:
        info = torch.utils.data.get_worker_info()
        number, stride = self.first, 1
        if info is not None:
            number, stride = self.first + info.id, info.num_workers
        while True:
            rng = np.random.default_rng([self._seed, self._rank, number])
            yield self._sampler.load(*self._sampler.draw(rng))
            number += stride
