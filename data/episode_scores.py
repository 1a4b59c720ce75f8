"""Scores of whole episodes for every task, renewed in the background of training.

Every episode is visited in turn, one of its steps at a time; a score is the mean over its last visits. A score is the
same for all steps of an episode, and choosing by it loads nothing.

Shapes: `E` members, `N` tasks, `K` episodes, `V` visits, `P` steps scored beside one batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """Episodes of a dataset, whose steps are numbered through: `task` that collected each and its `length` in steps,
    int64 [K] each."""

    task: NDArray[np.int64]
    length: NDArray[np.int64]

    @property
    def first_step(self) -> NDArray[np.int64]:
        """Number of each episode's first step, [K]."""
        return np.cumsum(self.length) - self.length


class ScoringSchedule:
    """Which steps are scored beside batch n, a function of (seed, n) alone: passes over all episodes in random order,
    one step of each. The steps of `visits` successive passes lie in different parts of an episode, so that their mean
    is a stratified one."""

    def __init__(self, episodes: Episodes, per_batch: int, visits: int, seed: int, start: int = 0) -> None:
        """`start`: number of the batch with which the first pass begins."""
        self.episodes, self.visits, self.start, self._seed = episodes, visits, start, seed
        self.per_batch = per_batch
        self.batches = -(-len(episodes.length) // self.per_batch)  # of a pass
        self._stratum = np.random.default_rng([seed, 0]).integers(visits, size=len(episodes.length))
        self._known: tuple[int, NDArray[np.int64], NDArray[np.float64]] | None = None

    def pass_of(self, number: int) -> tuple[int, bool]:
        """The pass that batch `number` belongs to, and whether it is its last batch."""
        passed, batch = divmod(number - self.start, self.batches)
        return passed, batch == self.batches - 1

    def visit_of(self, number: int) -> int:
        """Which of the last visits batch `number` belongs to."""
        return self.pass_of(number)[0] % self.visits

    def steps(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Episodes scored beside batch `number`, and the number of the step by which each is scored, [P] each."""
        passed, batch = divmod(number - self.start, self.batches)
        if self._known is None or self._known[0] != passed:
            rng = np.random.default_rng([self._seed, 1, self.start, passed])
            count = len(self.episodes.length)
            self._known = passed, rng.permutation(count), rng.random(count)
        _, order, within = self._known
        episode = np.resize(np.roll(order, -batch * self.per_batch), self.per_batch)  # the last wraps around
        part = ((self._stratum[episode] + passed) % self.visits + within[episode]) / self.visits
        step = (part * self.episodes.length[episode]).astype(np.int64)
        return episode, self.episodes.first_step[episode] + step


class EpisodeScores(nn.Module):
    """Scores of each episode for each task. Two versions are kept: the later one counts from `lag` batches after the
    one it was finished with, so that batches drawn ahead of the training by any number of processes are the same."""

    visits: Tensor  # [V, E, N, K] scores of the last visits; NaN: none yet
    versions: Tensor  # [2, E, N, K] mean scores
    since: Tensor  # int64 [2] number of the first batch each version counts for; -1: none yet
    start: Tensor  # int64, of the schedule

    def __init__(self, schedule: ScoringSchedule, members: int, num_tasks: int, lag: int) -> None:
        super().__init__()
        self.schedule, self.lag = schedule, lag
        shape = members, num_tasks, len(schedule.episodes.length)
        self.register_buffer("visits", torch.full((schedule.visits, *shape), torch.nan))
        self.register_buffer("versions", torch.full((2, *shape), torch.nan))
        self.register_buffer("since", torch.full((2,), -1))
        self.register_buffer("start", torch.tensor(schedule.start))
        self._counts_from: list[int] | None = None  # `since`, without waiting for a device at every batch
        self.register_load_state_dict_post_hook(_forget_since)

    @torch.no_grad()
    def add(self, number: int, episode: Tensor, score: Tensor) -> bool:
        """Take the scores [E, P, N] of episodes [P], computed with batch `number`. Whether they finished a version."""
        self.write(torch.full_like(episode, self.schedule.visit_of(number)), episode, score)
        return self.finish(number)

    @torch.no_grad()
    def write(self, visit: Tensor, episode: Tensor, score: Tensor) -> None:
        """Keep the scores [E, P, N] of episodes [P] as those of a visit, int64 [P]."""
        self.visits[visit, :, :, episode] = score.transpose(0, 1).to(self.visits)

    @torch.no_grad()
    def finish(self, number: int) -> bool:
        """Whether batch `number` finished a version, which is then kept: the last batch of a pass does, if the version
        before counts already and every episode was visited since `forget`."""
        if not self.schedule.pass_of(number)[1] or self._since()[1] > number:
            return False
        score = self.visits.nanmean(0)
        if bool(score.isnan().all(1).any()):
            return False
        self.publish(score, number + 1 + self.lag)
        return True

    @torch.no_grad()
    def publish(self, score: Tensor, since: int) -> None:
        """Make scores [E, N, K] the later version, which counts from batch `since` on."""
        self.versions.copy_(torch.stack([self.versions[1], score]))
        self.since.copy_(torch.stack([self.since[1], self.since.new_tensor(since)]))
        self._counts_from = None

    def version_of(self, number: int) -> tuple[int, int] | None:
        """Index of the version that counts for batch `number`, and the batch since which it does; None before the
        first."""
        since = self._since()
        for version in (1, 0):
            if 0 <= since[version] <= number:
                return version, since[version]
        return None

    def _since(self) -> list[int]:
        if self._counts_from is None:
            self._counts_from = self.since.tolist()
        return self._counts_from

    def forget(self) -> None:
        """Drop the scores of visits: later ones come from another Q-function."""
        self.visits.fill_(torch.nan)


def _forget_since(module: Any, incompatible_keys: Any) -> None:
    module._counts_from = None


def move_episodes(scores: Tensor, known: NDArray[np.int64], now: NDArray[np.int64]) -> Tensor:
    """Scores [..., K] of episodes with keys `known` [K], reordered for the episodes with keys `now`, after a dataset
    has grown; NaN (none yet) for new episodes."""
    order = np.argsort(now)
    position = order[np.searchsorted(now, known, sorter=order)]
    moved = scores.new_full((*scores.shape[:-1], len(now)), torch.nan)
    moved[..., torch.from_numpy(position)] = scores
    return moved
