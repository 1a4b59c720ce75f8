"""The router: applies a sharing rule to whole batches, keeps running statistics of each task, and reports mean weights.

Shapes: `B` rows of a batch, `N` tasks, `R` scores of own transitions in the window, `E` members: networks trained side
by side, each with statistics of its own. With several members every tensor has a leading [E].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data.distributed import gather, local_rows
from data.sharing import RULES, RuleContext, Scores
from sim.options import check_choice, check_fraction, check_least

GRANULARITIES = ("transition", "episode")
REPORT_DECAY = 0.999  # per step, of the sums behind the report
EPISODE_RATE = 0.3  # of the running mean score of an episode


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """Options of a router.

    `percentile`: k in percent from the top; k = 10 compares with the 90th percentile of the last `window` own Q-values
    of each task. `temperature`: tau; 0: adaptive, the running mean of |Delta| of each task with `decay`, clipped to
    `tau_low` and `tau_high` (CDS, app. C.1, averages Delta; the absolute value cannot reach zero or below).
    `weigh_own_probability`: probability, in each step, that a task's own transitions are weighed too. `granularity`
    episode: a transition's score is the running mean over its episode, for every task where the rule compares tasks.
    """

    rule: str = "cds"
    percentile: float = 10.0
    window: int = 1024
    temperature: float = 0.0
    decay: float = 0.995
    tau_low: float = 1e-3
    tau_high: float = float("inf")
    weigh_own_probability: float = 0.0
    granularity: str = "transition"

    def __post_init__(self) -> None:
        check_choice("sharing rule", self.rule, tuple(RULES))
        check_choice("granularity", self.granularity, GRANULARITIES)
        if not 0 <= self.percentile <= 100:
            raise ValueError(f"the percentile is 0 to 100 percent from the top, got {self.percentile}")
        check_fraction(self, "weigh_own_probability")
        check_least(self, 0, "temperature")
        if not 0 < self.tau_low <= self.tau_high:
            raise ValueError("tau_low is above 0 and at most tau_high")


class RoutableBatch(Protocol):
    """Fields of a batch that the router reads, each [..., B]."""

    task_index: Tensor  # int64, i
    source_task_index: Tensor  # int64, j
    success: Tensor  # of the target task: images at the end of the episode, states in the next state
    episode: Tensor  # int64, number of the episode in the dataset


class Router(torch.nn.Module):
    """Weighs batches by one rule. Its running statistics are buffers: saved with the checkpoint, moved with the
    device."""

    tau: Tensor  # [E, N] running average of |Delta|; 0: none yet
    own: Tensor  # [E, N, R + 1] the last scores of own transitions; slot R takes writes that are discarded
    own_count: Tensor  # int64 [E, N] own transitions seen
    episode_score: Tensor  # [E, N, episodes]; -inf: none yet
    sums: Tensor  # [2, 2, E, N, N] running sums of 1 and of the weight, by failure or success, target and source

    def __init__(self, config: RouterConfig, num_tasks: int, members: int = 1, num_episodes: int = 0) -> None:
        """`num_episodes` of the dataset: needed only for granularity episode."""
        super().__init__()
        self.config, self.rule = config, RULES[config.rule]
        self.by_episode = config.granularity == "episode" and self.rule.uses_q
        window = config.window if self.rule.reference else 0
        self.register_buffer("tau", torch.zeros(members, num_tasks))
        self.register_buffer("own", torch.zeros(members, num_tasks, window + 1))
        self.register_buffer("own_count", torch.zeros(members, num_tasks, dtype=torch.int64))
        episodes = num_episodes if self.by_episode else 0
        self.register_buffer("episode_score", torch.full((members, num_tasks, episodes), -torch.inf))
        self.register_buffer("sums", torch.zeros(2, 2, members, num_tasks, num_tasks))

    @torch.no_grad()
    def weigh(
        self, batch: RoutableBatch, scores: Scores | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Weights [..., B]: the rule's for shared transitions and, with `weigh_own_probability`, for own ones; else 1.
        For a rule with a reference, shared transitions weigh 0 until the task has seen own ones. Without `scores` a
        rule that shares by a snapshot shares nothing.

        Rows of all processes are weighed together, so that their statistics stay equal. `generator`, the same in each,
        is needed only for `weigh_own_probability`."""
        if scores is None and self.rule.snapshot:
            return (batch.task_index == batch.source_task_index).float()
        with torch.autocast(self.tau.device.type, enabled=False):
            return self._weigh(batch, scores, generator)

    def _weigh(self, batch: RoutableBatch, scores: Scores | None, generator: torch.Generator | None) -> Tensor:
        lead = batch.task_index.dim() > 1
        columns = batch.task_index, batch.source_task_index, batch.success
        target, source, success = (self._all(column, lead) for column in columns)
        place = F.one_hot(target, self.tau.shape[-1]).to(self.tau.dtype)  # [E, B, N]
        weight = torch.ones_like(place[..., 0])
        if self.rule.score is not None:
            assert scores is not None, f"rule {self.rule.name} needs Q-values"
            score = self._all(self.rule.score(scores), lead).to(self.tau.dtype)
            q_tasks = None if scores.q_tasks is None else self._all(scores.q_tasks, lead).to(self.tau.dtype)
            if self.by_episode:
                episode = self._all(batch.episode, lead)
                if q_tasks is None:
                    score = self._of_episode(score[..., None], target[..., None], episode)[..., 0]
                else:  # such a rule reads nothing else
                    tasks = torch.arange(q_tasks.shape[-1], device=q_tasks.device).expand(q_tasks.shape)
                    q_tasks = self._of_episode(q_tasks, tasks, episode)
            shared = source != target
            context = self._context(score, place, target, shared, q_tasks)
            weighed = shared | self._own_too(target, generator)
            weight = torch.where(weighed, self.rule.weight(score, context).nan_to_num(0.0), weight)
        self._count(place, source, weight, success)
        weight = local_rows(weight.transpose(0, 1)).transpose(0, 1)
        return weight if lead else weight[0]

    @torch.no_grad()
    def resample(
        self, batch: RoutableBatch, weight: Tensor, candidates: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Importance resampling: all own transitions, and one of every `candidates` shared ones of each target, drawn
        in proportion to weight [..., B]. Their rows [..., C] and weights [..., C]; a shared one has the mean weight of
        its target's candidates.

        Every term of the loss keeps its expectation, and no place of the batch goes to a transition that hardly counts.
        Systematic resampling of this process's rows, in which each target has a multiple of `candidates`."""
        lead = batch.task_index.dim() > 1
        target, source, weight = (
            rows if lead else rows[None] for rows in (batch.task_index, batch.source_task_index, weight)
        )
        shared = target != source
        place = F.one_hot(target, self.tau.shape[-1]).to(weight.dtype) * shared[..., None]
        count, total = place.sum(1), (place * weight[..., None]).sum(1)
        mean = (total / count.clamp(min=1)).gather(-1, target)
        share = torch.where(total.gather(-1, target) > 0, weight / mean.clamp(min=1e-12), 1.0) * shared / candidates
        until = share.double().cumsum(-1)
        kept = int(shared[0].sum()) // candidates
        start = torch.rand(len(target), 1, generator=generator, device=generator.device).to(until)
        point = start + torch.arange(kept, device=until.device)
        drawn = torch.searchsorted(until, point, right=True).clamp(max=shared.shape[1] - 1)
        own = (~shared).nonzero()[:, 1].view(len(target), -1)
        index = torch.cat([own, drawn], 1).sort(1).values
        weight = torch.where(shared, mean, weight).gather(1, index)
        return (index, weight) if lead else (index[0], weight[0])

    def forget(self) -> None:
        """Drop the scores of own transitions and episodes: later ones come from another Q-function."""
        self.own_count.zero_()
        self.episode_score.fill_(-torch.inf)

    def _all(self, rows: Tensor, lead: bool) -> Tensor:
        """Gather the rows of all processes, [E, B, ...]."""
        rows = rows if lead else rows[None]
        return gather(rows.transpose(0, 1)).transpose(0, 1)

    def _of_episode(self, score: Tensor, task: Tensor, episode: Tensor) -> Tensor:
        """Running mean score of each row's episode, [E, B, K], for K tasks: updated with these rows first."""
        member = torch.arange(len(task), device=task.device)[:, None, None]
        tasks, episodes = self.episode_score.shape[1:]
        cells, place = ((member * tasks + task) * episodes + episode[..., None]).unique(return_inverse=True)
        rows, values = place.flatten(), score.flatten()
        count = torch.zeros_like(cells, dtype=score.dtype).index_add_(0, rows, torch.ones_like(values))
        mean = torch.zeros_like(count).index_add_(0, rows, values) / count
        flat = self.episode_score.view(-1)
        old = flat[cells]
        flat[cells] = torch.where(old.isinf(), mean, old.lerp(mean, EPISODE_RATE))
        return flat[cells][place]

    def _context(
        self, score: Tensor, place: Tensor, target: Tensor, shared: Tensor, q_tasks: Tensor | None
    ) -> RuleContext:
        reference = torch.zeros_like(score)
        if self.rule.reference:
            self._remember(score, place * ~shared[..., None], target)
            reference = self.reference().gather(-1, target)
            self._warm((score - reference).abs(), place * shared[..., None])
        temperature = self.temperature().gather(-1, target)
        return RuleContext(reference=reference, temperature=temperature, target=target, q_tasks=q_tasks)

    def temperature(self) -> Tensor:
        """Temperature tau of each task, [E, N]: the fixed value, or the clipped running mean of |Delta|; 1 for a rule
        without Delta."""
        if self.config.temperature or not self.rule.reference:
            return torch.full_like(self.tau, self.config.temperature or 1.0)
        return self.tau.clamp(self.config.tau_low, self.config.tau_high)

    def _remember(self, score: Tensor, own: Tensor, target: Tensor) -> None:
        """Write own scores, marked by `own` [E, B, N], over the oldest of the window."""
        size = self.own.shape[-1] - 1
        rank = own.cumsum(1).gather(-1, target[..., None])[..., 0].long() - 1
        kept = (self.own_count.gather(-1, target) + rank) % size
        last = rank >= own.sum(1).gather(-1, target) - size  # a batch may hold more than the window
        kept = torch.where(own.any(-1) & last, kept, size)
        self.own[torch.arange(len(target), device=target.device)[:, None], target, kept] = score
        self.own[..., size] = 0.0
        self.own_count += own.sum(1).long()

    def reference(self) -> Tensor:
        """Reference score of each task, [E, N]: the quantile or mean of its own scores; NaN before the first."""
        assert self.rule.reference is not None
        window = self.own[..., :-1]
        filled = torch.arange(window.shape[-1], device=window.device) < self.own_count[..., None]
        return self.rule.reference(window.masked_fill(~filled, torch.nan), self.config.percentile)

    def _warm(self, spread: Tensor, shared: Tensor) -> None:
        """tau <- decay tau + (1 - decay) mean |Delta| of the shared rows [E, B, N] of each task that has any."""
        shared = shared * ~spread.isnan()[..., None]
        count = shared.sum(1)
        average = (shared * spread.nan_to_num(0.0)[..., None]).sum(1) / count.clamp(min=1)
        new = torch.where(self.tau > 0, self.tau.lerp(average, 1 - self.config.decay), average)
        self.tau.copy_(torch.where(count > 0, new, self.tau))

    def _own_too(self, target: Tensor, generator: torch.Generator | None) -> Tensor:
        """Whether own rows [E, B] are weighed in this step."""
        if not self.config.weigh_own_probability:
            return torch.zeros_like(target, dtype=torch.bool)
        assert generator is not None, "weigh_own_probability needs a generator"
        draw = torch.rand(self.tau.shape, generator=generator, device=generator.device).to(target.device)
        return (draw < self.config.weigh_own_probability).gather(-1, target)

    def _count(self, place: Tensor, source: Tensor, weight: Tensor, success: Tensor) -> None:
        from_task = F.one_hot(source, place.shape[-1]).to(place.dtype)
        values = torch.stack([torch.ones_like(weight), weight])
        outcome = torch.stack([1 - success, success])
        self.sums.mul_(REPORT_DECAY).add_(torch.einsum("ebn,ebm,veb,oeb->voenm", place, from_task, values, outcome))

    def report(self, steps: NDArray[np.int64], member: int = 0) -> dict[str, Any]:
        """Routing statistics over about the last thousand steps, as plain values; None where unknown. `steps` [2, N, N]
        of the dataset: those that fail and succeed at a target (row), by source, as batches may hold other proportions.

        `weights` [N][N]: mean by target and source. `success` [N]: weighted fraction of successes among shared ones.
        `steps` [N]: own transitions of each task. `temperature`, `reference` [N]."""
        stock = torch.from_numpy(steps).to(self.sums)
        rows, total = self.sums[:, :, member]
        mean = total / rows  # by outcome; one that no batch held has the mean of the other
        mean = torch.where(mean.isnan(), mean.flip(0), mean)
        given = (mean * stock).nan_to_num(0.0)
        others = 1 - torch.eye(stock.shape[-1], device=stock.device)
        shared = (given * others).sum(-1)
        weights = torch.where(rows.sum(0) > 0, given.sum(0) / stock.sum(0), torch.nan)
        known = {"weights": weights, "success": shared[1] / shared.sum(0), "steps": stock.sum(0).diagonal()}
        if self.rule.uses_q:
            known["temperature"] = self.temperature()[member]
        if self.rule.reference:
            known["reference"] = self.reference()[member]
        return {"rule": self.rule.name, **{name: _plain(value.tolist()) for name, value in known.items()}}


def move_scores(scores: Tensor, known: NDArray[np.int64], now: NDArray[np.int64]) -> Tensor:
    """Episode scores [..., K] with keys `known` [K], reordered for the episodes with keys `now`, after a dataset has
    grown; -inf (none yet) for new episodes."""
    order = np.argsort(now)
    place = order[np.searchsorted(now, known, sorter=order)]
    moved = scores.new_full((*scores.shape[:-1], len(now)), -torch.inf)
    moved[..., torch.from_numpy(place)] = scores
    return moved


def effective_steps(weights: list[list[float | None]], steps: list[int]) -> list[float]:
    """Effective number of transitions of each task, shared ones counted by their mean weight: sum_j w_ij |D_j|. [N]"""
    return [sum((w or 0.0) * n for w, n in zip(row, steps, strict=True)) for row in weights]


def _plain(value: Any) -> Any:
    """NaN becomes None, for JSON."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if value == value else None
