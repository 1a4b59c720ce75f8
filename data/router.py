"""The router: applies a sharing rule to batches or to whole episodes, keeps running statistics, and reports them.

`--sharing weight` draws shared transitions evenly and weighs their loss; `--sharing sample` draws them from D_eff, by
their weight, and counts each in full (CDS, eq. 2, algorithm 1). `--granularity` tells whether single transitions or
whole episodes are scored.

Shapes: `B` rows of a batch, `N` tasks, `R` scores of own transitions in the window, `K` episodes, `E` members: networks
trained side by side, each with statistics of its own. With several members every tensor has a leading [E].
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.distributed import gather, local_rows
from data.episode_router import EpisodeRouter
from data.router_config import RouterConfig
from data.sharing import RULES, Scores
from data.transition_router import TransitionRouter, one_hot

REPORT_DECAY = 0.999  # per step, of the sums behind the report


class RoutableBatch(Protocol):
    """Fields of a batch that the router reads, each [..., B]."""

    task_index: Tensor  # int64, i
    source_task_index: Tensor  # int64, j
    success: Tensor  # of the target task: images at the end of the episode, states in the next state
    episode: Tensor  # int64, number of the episode in the dataset


class Router(torch.nn.Module):
    """Routes by one rule, through a router of `transitions` or of whole `episodes`. Its running statistics are buffers:
    saved with the checkpoint, moved with the device."""

    sums: Tensor  # [2, 2, E, N, N] running sums of 1 and of the weight, by failure or success, target and source
    _outcome_weight: Tensor  # [N, 2]
    learned: Tensor  # [3, E, N] running sums of the weight of rows learned from: all, shared, shared successes

    def __init__(
        self,
        config: RouterConfig,
        num_tasks: int,
        members: int = 1,
        *,
        episodes: EpisodeRouter | None = None,
        outcome_weight: NDArray[np.float64] | None = None,
    ) -> None:
        """`episodes`: needed where whole ones are scored. `outcome_weight` [N, 2]: what an own failure and an own
        success count for the statistics of D_i, where batches hold other proportions than D_i."""
        super().__init__()
        assert (episodes is not None) == config.by_episode, "granularity episode and scores of episodes go together"
        self.config, self.rule, self.episodes = config, RULES[config.rule], episodes
        self.transitions = None if episodes is not None else TransitionRouter(config, num_tasks, members)
        self.register_buffer("sums", torch.zeros(2, 2, members, num_tasks, num_tasks))
        self.register_buffer("learned", torch.zeros(3, members, num_tasks))
        outcome = np.ones((num_tasks, 2)) if outcome_weight is None else outcome_weight
        self.register_buffer("_outcome_weight", torch.from_numpy(outcome).float(), persistent=False)

    # ---------------------------------------------------------------- weights

    @torch.no_grad()
    def weigh(
        self,
        batch: RoutableBatch,
        scores: Scores | None = None,
        uniform: Tensor | None = None,
        number: int = 0,
        learned: bool = True,
    ) -> Tensor:
        """Weights [..., B]: the rule's for shared transitions and, with `weigh_own_probability`, for own ones; else 1.
        Where shared rows are drawn from episodes, every row weighs 1. Else shared ones weigh 0 until their task's own
        ones, or the episodes, have been scored, before `share_after`, and without `scores` where a rule scores by a
        snapshot.

        `learned`: whether the batch is learned from as it is, or `choose` draws from it.

        Rows of all processes are weighed together, so that their statistics stay equal. `uniform`: random numbers
        [E, N] in [0, 1), the same in each process, needed only for `weigh_own_probability`."""
        lead = batch.task_index.dim() > 1
        columns = batch.task_index, batch.source_task_index, batch.success, batch.episode
        target, source, success, episode = (self._all(column, lead) for column in columns)
        shared, one = source != target, torch.ones_like(target, dtype=self.sums.dtype)
        if self.episodes is not None:
            weight = self._weigh_by_episode(self.episodes, target, shared, episode, uniform, number)
        elif self.rule.uses_q and (number < self.config.share_after or (scores is None and self.rule.snapshot)):
            weight = (~shared).to(one)
        elif self.transitions is not None and self.rule.score is not None:
            assert scores is not None, f"rule {self.rule.name} needs Q-values"
            known = {field.name: getattr(scores, field.name) for field in fields(scores)}
            scores = Scores(**{name: self._all(rows, lead) for name, rows in known.items() if rows is not None})
            given = self.transitions.weigh(scores, target, shared, self._outcome_weight[target, success.long()])
            weight = torch.where(shared | self._own_too(target, uniform), given, one)
        else:
            weight = one
        self._count(target, source, weight, success)
        if learned:
            self._count_learned(target, shared, weight, success)
        weight = local_rows(weight.transpose(0, 1)).transpose(0, 1)
        return weight if lead else weight[0]

    def _weigh_by_episode(
        self,
        episodes: EpisodeRouter,
        target: Tensor,
        shared: Tensor,
        episode: Tensor,
        uniform: Tensor | None,
        number: int,
    ) -> Tensor:
        """Weights [E, B]; 1 where shared rows are drawn by them."""
        one = torch.ones_like(target, dtype=self.sums.dtype)
        if self.config.sharing == "sample":
            return one
        given = episodes.weight_of(target, episode, number)
        if given is None:
            return (~shared).to(one)
        return torch.where(shared | self._own_too(target, uniform), given, one)

    @torch.no_grad()
    def weight_as_shared(self, scores: Scores | None, target: Tensor, episode: Tensor, number: int) -> Tensor:
        """Weights [E, B] that rows have for their targets [E, B] if they are shared, by the statistics after `number`
        updates; `episode` int64 [E, B]. NaN where these do not tell (any more)."""
        if self.episodes is not None:
            given = self.episodes.weight_of(target, episode, number)
            return self.sums.new_full(target.shape, torch.nan) if given is None else given
        if self.transitions is None or self.rule.score is None:
            return torch.ones_like(target, dtype=self.sums.dtype)
        if scores is None or number < self.config.share_after:
            return torch.zeros_like(target, dtype=self.sums.dtype)
        return self.transitions.weight_as_shared(scores, target)

    def chooses(self, number: int) -> bool:
        """Whether the shared rows of batch `number` are what the rule chose: of a rule that draws episodes not before
        their first scores, and `share_after`."""
        if not self.config.draws_episodes:
            return True
        assert self.episodes is not None
        return self.episodes.weights(number) is not None

    @torch.no_grad()
    def choose(
        self, batch: RoutableBatch, weight: Tensor, tasks: Tensor, per_task: int, num_shared: int, uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draw the rows that are learned from, `per_task` of each of its targets, int64 `tasks` [T], from a batch of
        candidates: up to `num_shared` shared ones in proportion to weight [..., B], each of which counts 1, and own
        ones for the rest. Their rows [..., C] and weights [..., C].

        Systematic sampling of this process's rows, by random numbers `uniform` [E, N] in [0, 1). A target has at least
        `per_task` own rows, the same in each member; where fewer than `num_shared` candidates weigh anything, own rows
        take their places."""
        lead = batch.task_index.dim() > 1
        target, source, weight, success = (
            rows if lead else rows[None] for rows in (batch.task_index, batch.source_task_index, weight, batch.success)
        )
        of_task, is_own = target[0] == tasks[:, None], target[0] == source[0]  # [T, B], [B]
        own = (of_task & is_own).byte().argsort(dim=-1, descending=True, stable=True)[:, :per_task]
        first, spare = own.expand(len(target), -1, -1).tensor_split([per_task - num_shared], -1)
        w = weight[:, None].double().masked_fill(~of_task | is_own, 0.0)  # [E, T, B]
        places = (w > 0).sum(-1, keepdim=True).clamp(max=num_shared)
        until = (w / w.sum(-1, keepdim=True).clamp(min=1e-300)).cumsum(-1) * places
        point = uniform[:, tasks, None].to(until) + torch.arange(num_shared, device=until.device)
        last = torch.where(w > 0, torch.arange(w.shape[-1], device=w.device), 0).amax(-1, keepdim=True)
        drawn = torch.minimum(torch.searchsorted(until, point, right=True), last)
        filled = torch.arange(num_shared, device=until.device) >= places
        index = torch.cat([first, torch.where(filled, spare, drawn)], -1).flatten(1)
        target, source, weight, success = (rows.gather(1, index) for rows in (target, source, weight, success))
        shared = source != target
        weight = torch.where(shared, 1.0, weight)
        gathered = (gather(x.transpose(0, 1)).transpose(0, 1) for x in (target, shared, weight, success))
        self._count_learned(*gathered)
        return (index, weight) if lead else (index[0], weight[0])

    def temperature(self) -> Tensor:
        """tau of each task, [E, N]."""
        return self._statistics.temperature()

    def reference(self) -> Tensor:
        """Reference score of each task, [E, N]; NaN before the first own score."""
        return self._statistics.reference()

    def forget(self) -> None:
        """Drop the scores of own transitions and episodes: later ones come from another Q-function."""
        self._statistics.forget()

    @property
    def _statistics(self) -> TransitionRouter | EpisodeRouter:
        found = self.episodes if self.episodes is not None else self.transitions
        assert found is not None
        return found

    def _all(self, rows: Tensor, lead: bool) -> Tensor:
        """Gather the rows of all processes, [E, B, ...]."""
        rows = rows if lead else rows[None]
        return gather(rows.transpose(0, 1)).transpose(0, 1)

    def _own_too(self, target: Tensor, uniform: Tensor | None) -> Tensor:
        """Whether own rows [E, B] are weighed in this step."""
        if not self.config.weigh_own_probability:
            return torch.zeros_like(target, dtype=torch.bool)
        assert uniform is not None, "weigh_own_probability needs random numbers"
        return (uniform.to(target.device) < self.config.weigh_own_probability).gather(-1, target)

    # ---------------------------------------------------------------- report

    def _count(self, target: Tensor, source: Tensor, weight: Tensor, success: Tensor) -> None:
        failure = 1 - success
        rows = torch.stack([failure, success, failure * weight, success * weight])[..., None]  # [4, E, B, 1]
        counted = (rows * one_hot(target, self.sums)).transpose(-1, -2) @ one_hot(source, self.sums)
        self.sums.mul_(REPORT_DECAY).add_(counted.view_as(self.sums))

    def _count_learned(self, target: Tensor, shared: Tensor, weight: Tensor, success: Tensor) -> None:
        of_shared = weight * shared
        rows = torch.stack([weight, of_shared, of_shared * success])[:, :, None]  # [3, E, 1, B]
        counted = rows @ one_hot(target, self.sums)
        self.learned.mul_(REPORT_DECAY).add_(counted[:, :, 0])

    def report(
        self, steps: NDArray[np.int64], member: int = 0, accepted: NDArray[np.bool_] | None = None
    ) -> dict[str, Any]:
        """Routing statistics over about the last thousand steps, as plain values; None where unknown. `steps` [2, N, N]
        of the dataset: those that fail and succeed at a target (row), by source, as batches may hold other proportions.
        `accepted` [K, N]: which episodes succeed at which task.

        `weights` [N][N]: mean by target and source. `shared` [N]: fraction of what is learned from, by weight, that is
        shared. `success` [N]: fraction of successes among that. `steps` [N]: own transitions of each task.
        `temperature`, `reference` [N]. `auc` [N]: area under the ROC curve of the scores of others' episodes."""
        stock = torch.from_numpy(steps).to(self.sums)
        learned = self.learned[:, member]
        known = {
            "weights": self._mean_weights(stock, member),
            "shared": learned[1] / learned[0],
            "success": learned[2] / learned[1],
            "steps": stock.sum(0).diagonal(),
        }
        if self.rule.uses_q:
            known["temperature"] = self.temperature()[member]
        if self.rule.reference:
            known["reference"] = self.reference()[member]
        if self.episodes is not None and accepted is not None:
            known["auc"] = self.episodes.area_under_roc(accepted, member)
        return {"rule": self.rule.name, **{name: _plain(value.tolist()) for name, value in known.items()}}

    def _mean_weights(self, stock: Tensor, member: int) -> Tensor:
        """Mean weights [N, N] over the dataset by target and source; NaN where unknown."""
        if self.episodes is not None:
            return self.episodes.mean_weights(member)
        rows, total = self.sums[:, :, member]
        mean = total / rows  # by outcome; one that no batch held has the mean of the other
        mean = torch.where(mean.isnan(), mean.flip(0), mean)
        given = (mean * stock).nan_to_num(0.0)
        return torch.where(rows.sum(0) > 0, given.sum(0) / stock.sum(0), torch.nan)


def effective_steps(weights: list[list[float | None]], steps: list[int]) -> list[float]:
    """Effective number of transitions of each task, shared ones counted by their mean weight: sum_j w_ij |D_j|. [N]"""
    return [sum((w or 0.0) * n for w, n in zip(row, steps, strict=True)) for row in weights]


def _plain(value: Any) -> Any:
    """NaN becomes None, for JSON."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if value == value else None
