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

SEEN = ("observation", "next_observation", "action")  # columns that a batch has as they are


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
    """A dataset on the device, shared by its samplers, with reward, end and success of every task. What is learned from
    a reward r is `scale` r + `shift`. On a CPU observations and actions are the dataset's own memory."""

    def __init__(
        self, dataset: TransitionDataset, device: torch.device | str = "cpu", scale: float = 1.0, shift: float = 0.0
    ) -> None:
        self.dataset, self.device, self.zero_reward = dataset, device, shift
        columns = dataset.columns
        self._seen = {name: torch.from_numpy(columns[name]).to(device) for name in SEEN}
        reward = dataset.rewards * np.float32(scale) + np.float32(shift)
        by_task = np.stack([reward, dataset.done, dataset.successes], 1, dtype=np.float32)
        self._by_task = torch.from_numpy(by_task).to(device)  # [D, 3, N]
        episode = torch.from_numpy(dataset.episode)
        self._numbers = torch.stack([torch.from_numpy(columns["task"]), episode], 1).to(device)
        self.episode = self._numbers[:, 1]
        self.length = self.episode.bincount()  # [K] of each episode, and the row of its first step
        self.first = self.length.cumsum(0) - self.length

    def batch(self, row: Tensor, target: Tensor) -> StateBatch:
        """Transitions `row` [E, B], relabelled for tasks `target` [E, B]."""
        source, episode = self._numbers[row].unbind(-1)
        reward, done, success = self._by_task[row, :, target].unbind(-1)
        return StateBatch(
            **{name: column[row] for name, column in self._seen.items()},
            reward=reward,
            done=done,
            success=success,
            task_index=target,
            source_task_index=source,
            episode=episode,
        )


@dataclass(frozen=True)
class Draws:
    """Random numbers in [0, 1) by which all samplers of a seed draw their rows, for T targets: `row` of 53 bits
    [E, T, per_task + shared], and `further` [E, T, shared, candidates - 1], where one offers candidates."""

    row: Tensor
    further: Tensor | None = None


@dataclass(frozen=True)
class _Target:
    """Rows that the batches of a target task are drawn from: its own, and the others' that it may share, [D'] each; and
    which episodes the latter are of, bool [K]."""

    task: int
    own: Tensor
    others: Tensor
    other_episodes: Tensor


class StateSampler:
    """Samples `per_task` transitions for each target task, uniformly: a fraction of them from the union of its sources,
    the others from its own."""

    def __init__(
        self,
        tensors: TransitionTensors,
        sources: NDArray[np.bool_],
        tasks: tuple[int, ...],
        per_task: int = 128,
        shared_fraction: float = 0.5,
        relabel_rewards: bool = True,
        by_episode: bool = False,
        candidates_per_shared: int = 0,
        offers: bool = False,
    ) -> None:
        """`sources[i, j]`: task i may draw from task j. `tasks`: trained tasks; others are neither target nor source.
        Without `relabel_rewards` shared transitions carry reward 0 (UDS). `by_episode`: shared ones are drawn from
        episodes by their weights. `candidates_per_shared`: if not 0, a batch has `per_task` own rows and so many for
        each shared place, of which a router chooses: different candidates, or copies unless it `offers` some."""
        self._tensors, self._relabel_rewards, self._by_episode = tensors, relabel_rewards, by_episode
        self._per_task, self._num_shared = per_task, round(per_task * shared_fraction)
        self._candidates, self.offers = candidates_per_shared, offers
        dataset, device = tensors.dataset, tensors.device
        task = dataset.columns["task"]
        self._targets: list[_Target] = []
        for target in tasks:
            own = np.flatnonzero(task == target)
            if not len(own):
                raise DatasetError(f"the dataset holds no step of task {dataset.benchmark.task_names[target]}")
            shared_from = [j for j in np.flatnonzero(sources[target]) if j in tasks and j != target]
            others = np.flatnonzero(np.isin(task, shared_from))
            mine, theirs = (torch.from_numpy(pool).to(device) for pool in (own, others))
            of_episode = torch.zeros_like(tensors.length, dtype=torch.bool)
            of_episode[tensors.episode[theirs]] = True
            self._targets.append(_Target(target, mine, theirs, of_episode))
        rows = per_task + candidates_per_shared * self._num_shared
        self._tasks = torch.tensor(tasks, device=device)
        self._target = self._tasks.repeat_interleave(rows)

    def draw(self, random: MemberRandom) -> Draws:
        """The numbers of a batch; those of a sampler that offers candidates will do for all."""
        count, shares, more = len(self._targets), self._num_shared, max(0, self._candidates - 1)
        row = random.uniform(count, self._per_task + shares, dtype=torch.float64)
        return Draws(row, random.uniform(count, shares, more, dtype=torch.float64) if self.offers and more else None)

    def sample(self, draws: Draws, weights: Tensor | None = None) -> StateBatch:
        """A batch for each member. `weights` [E, N, K] of episodes, for a sampler that draws by them; where a task
        shares fewer steps than there are shared places, and without weights, own rows take them.

        Row floor(u n) of n, with u of 53 bits: the odds of two rows differ by less than n / 2^53 of themselves."""
        shares, drawn, parts = self._num_shared, draws.row, []
        for k, target in enumerate(self._targets):
            own = _pick(target.own, drawn[:, k, : self._per_task])
            first, spare = own[:, : self._per_task - shares], own[:, self._per_task - shares :]
            uniform = drawn[:, k, self._per_task :]
            if not len(target.others) or not shares:
                chosen = spare
            elif self._by_episode:
                chosen = self._of_episodes(target, uniform, spare, weights)
            else:
                chosen = _pick(target.others, uniform)
            if not self._candidates:
                parts += [first, chosen]
                continue
            candidates = chosen[..., None].expand(-1, -1, self._candidates)
            if self.offers and draws.further is not None and len(target.others):
                candidates = torch.cat([chosen[..., None], _pick(target.others, draws.further[:, k])], -1)
            parts += [own, candidates.flatten(1)]
        return self._batch(torch.cat(parts, dim=1), self._target.expand(len(drawn), -1))

    def _of_episodes(self, target: _Target, uniform: Tensor, spare: Tensor, weights: Tensor | None) -> Tensor:
        """Shared rows [E, C] of a target, by uniform numbers [E, C]: an episode in proportion to its weight and length,
        and a step of it; `spare` ones [E, C] where there are fewer steps."""
        if weights is None:
            return spare
        first, lengths = self._tensors.first, self._tensors.length
        mass = (weights[:, target.task] * target.other_episodes * lengths).double()
        steps = ((mass > 0) * lengths).sum(1, keepdim=True)
        until = mass.cumsum(1)
        point = uniform * until[:, -1:]
        episode = torch.searchsorted(until, point, right=True).clamp(max=len(lengths) - 1)
        within = (point - (until - mass).gather(1, episode)) / mass.gather(1, episode).clamp(min=1e-300)
        length = lengths[episode]
        step = first[episode] + torch.minimum((within.clamp(0, 1) * length).long(), length - 1)
        return torch.where(torch.arange(uniform.shape[1], device=uniform.device) >= steps, spare, step)

    def load(self, step: Tensor, members: int) -> StateBatch:
        """Rows `step` [P], each relabelled for all T targets in turn, the same for every member: [E, P T]."""
        row = step.repeat_interleave(len(self._tasks))
        target = self._tasks.repeat(len(step))
        return self._batch(row.expand(members, -1), target.expand(members, -1))

    def _batch(self, row: Tensor, target: Tensor) -> StateBatch:
        batch = self._tensors.batch(row, target)
        if not self._relabel_rewards:
            own = batch.source_task_index == target
            batch.reward = torch.where(own, batch.reward, self._tensors.zero_reward)
        return batch


def _pick(pool: Tensor, uniform: Tensor) -> Tensor:
    """Rows of a pool [D'] by uniform numbers, of their shape."""
    return pool[(uniform * len(pool)).long()]
