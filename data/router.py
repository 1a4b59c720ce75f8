"""The router: applies a sharing rule to batches or to whole episodes, keeps running statistics, and reports them.

`--sharing weight` draws shared transitions evenly and weighs their loss; `--sharing sample` draws them from D_eff, by
their weight, and counts each in full (CDS, eq. 2, algorithm 1). `--granularity` tells whether single transitions or
whole episodes are scored.

Shapes: `B` rows of a batch, `N` tasks, `R` scores of own transitions in the window, `K` episodes, `E` members: networks
trained side by side, each with statistics of its own. With several members every tensor has a leading [E].
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.distributed import gather, local_rows
from data.episode_router import EpisodeRouter
from data.router_config import RouterConfig
from data.sharing import RULES, RuleContext, Scores

REPORT_DECAY = 0.999  # per step, of the sums behind the report


class RoutableBatch(Protocol):
    """Fields of a batch that the router reads, each [..., B]."""

    task_index: Tensor  # int64, i
    source_task_index: Tensor  # int64, j
    success: Tensor  # of the target task: images at the end of the episode, states in the next state
    episode: Tensor  # int64, number of the episode in the dataset


class Router(torch.nn.Module):
    """Routes by one rule. Its running statistics are buffers: saved with the checkpoint, moved with the device."""

    tau: Tensor  # [E, N] running average of Delta or |Delta|
    tau_known: Tensor  # bool [E, N]
    own: Tensor  # [E, N, R + 1] the last scores of own transitions; slot R takes writes that are discarded
    own_weight: Tensor  # [E, N, R + 1] what each counts
    own_count: Tensor  # int64 [E, N] own transitions seen
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
        self.config, self.rule, self.episodes = config, RULES[config.rule], episodes
        assert (episodes is not None) == config.by_episode, "granularity episode and scores of episodes go together"
        window = config.window if self.rule.reference and not config.by_episode else 0
        self.register_buffer("tau", torch.zeros(members, num_tasks))
        self.register_buffer("tau_known", torch.zeros(members, num_tasks, dtype=torch.bool))
        self.register_buffer("own", torch.zeros(members, num_tasks, window + 1))
        self.register_buffer("own_weight", torch.zeros(members, num_tasks, window + 1))
        self.register_buffer("own_count", torch.zeros(members, num_tasks, dtype=torch.int64))
        self.register_buffer("sums", torch.zeros(2, 2, members, num_tasks, num_tasks))
        self.register_buffer("learned", torch.zeros(3, members, num_tasks))
        outcome = np.ones((num_tasks, 2)) if outcome_weight is None else outcome_weight
        self.register_buffer("_outcome_weight", torch.from_numpy(outcome).float(), persistent=False)

    # ---------------------------------------------------------------- transitions

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
        target_one_hot = one_hot(target, self.tau)  # [E, B, N]
        shared, weight = source != target, torch.ones_like(target_one_hot[..., 0])
        if self.episodes is not None:
            if self.config.sharing == "weight":
                routes = self.episodes.held_weights(number)
                weighed = shared | self._own_too(target, uniform)
                member = torch.arange(len(target), device=target.device)[:, None]
                given = torch.zeros_like(weight) if routes is None else routes[member, target, episode]
                weight = torch.where(weighed & (shared | (routes is not None)), given, weight)
        elif self.rule.uses_q and (number < self.config.share_after or (scores is None and self.rule.snapshot)):
            weight = (~shared).to(weight)
        elif self.rule.score is not None:
            assert scores is not None, f"rule {self.rule.name} needs Q-values"
            with torch.autocast(self.tau.device.type, enabled=False):
                score = self._all(self.rule.score(scores), lead).to(self.tau.dtype)
                q_tasks = None if scores.q_tasks is None else self._all(scores.q_tasks, lead).to(self.tau.dtype)
                own_weight = self._outcome_weight[target, success.long()]
                context = self._context(score, target_one_hot, target, shared, q_tasks, own_weight)
                weighed = shared | self._own_too(target, uniform)
                weight = torch.where(weighed, self.rule.weight(score, context).nan_to_num(0.0), weight)
        self._count(target_one_hot, source, weight, success)
        if learned:
            self._count_learned(target_one_hot, shared, weight, success)
        weight = local_rows(weight.transpose(0, 1)).transpose(0, 1)
        return weight if lead else weight[0]

    @torch.no_grad()
    def weight_as_shared(self, scores: Scores | None, target: Tensor, episode: Tensor, number: int) -> Tensor:
        """Weights [E, B] that rows have for their targets [E, B] if they are shared, by the statistics after `number`
        updates; `episode` int64 [E, B]. NaN where these do not tell (any more)."""
        unknown = self.tau.new_full(target.shape, torch.nan)
        if self.episodes is not None:
            routes = self.episodes.held_weights(number)
            member = torch.arange(len(target), device=target.device)[:, None]
            return unknown if routes is None else routes[member, target, episode]
        if self.rule.score is None:
            return torch.ones_like(target, dtype=self.tau.dtype)
        if scores is None or number < self.config.share_after:
            return torch.zeros_like(unknown)
        score = self.rule.score(scores)
        reference = self.reference().gather(-1, target) if self.rule.reference else torch.zeros_like(score)
        temperature = self.temperature().gather(-1, target)
        context = RuleContext(reference=reference, temperature=temperature, target=target, q_tasks=scores.q_tasks)
        return torch.where(reference.isnan(), torch.nan, self.rule.weight(score, context))

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
        target_one_hot = one_hot(target, self.tau)
        gathered = (gather(x.transpose(0, 1)).transpose(0, 1) for x in (target_one_hot, shared, weight, success))
        self._count_learned(*gathered)
        return (index, weight) if lead else (index[0], weight[0])

    def forget(self) -> None:
        """Drop the scores of own transitions and episodes: later ones come from another Q-function."""
        self.own_count.zero_()
        if self.episodes is not None:
            self.episodes.scores.forget()

    def _all(self, rows: Tensor, lead: bool) -> Tensor:
        """Gather the rows of all processes, [E, B, ...]."""
        rows = rows if lead else rows[None]
        return gather(rows.transpose(0, 1)).transpose(0, 1)

    def _context(
        self,
        score: Tensor,
        target_one_hot: Tensor,
        target: Tensor,
        shared: Tensor,
        q_tasks: Tensor | None,
        own_weight: Tensor,
    ) -> RuleContext:
        reference = torch.zeros_like(score)
        if self.rule.reference:
            self._remember(score, target_one_hot * ~shared[..., None], target, own_weight)
            reference = self.reference().gather(-1, target)
            count = torch.where(shared, 1.0, own_weight if self.config.temperature == "absolute" else 0.0)
            self._warm(score - reference, target_one_hot * count[..., None])
        temperature = self.temperature().gather(-1, target)
        return RuleContext(reference=reference, temperature=temperature, target=target, q_tasks=q_tasks)

    def temperature(self) -> Tensor:
        """Temperature tau of each task, [E, N]: the fixed value, or the clipped running mean of Delta or |Delta|; 1 for
        a rule without Delta."""
        return self.config.tau(self.tau) if self.episodes is None else self.episodes.temperature()

    def _remember(self, score: Tensor, own: Tensor, target: Tensor, own_weight: Tensor) -> None:
        """Write own scores, marked by `own` [E, B, N], over the oldest of the window."""
        size = self.own.shape[-1] - 1
        rank = own.cumsum(1).gather(-1, target[..., None])[..., 0].long() - 1
        kept = (self.own_count.gather(-1, target) + rank) % size
        last = rank >= own.sum(1).gather(-1, target) - size  # a batch may hold more than the window
        kept = torch.where(own.any(-1) & last, kept, size)
        member = torch.arange(len(target), device=target.device)[:, None]
        self.own[member, target, kept] = score
        self.own_weight[member, target, kept] = own_weight
        self.own[..., size] = self.own_weight[..., size] = 0.0
        self.own_count += own.sum(1).long()

    def reference(self) -> Tensor:
        """Reference score of each task, [E, N]: the quantile or mean of its own scores; NaN before the first."""
        if self.episodes is not None:
            return self.episodes.reference()
        reference_of = self.config.reference_of
        assert reference_of is not None
        window = self.own[..., :-1]
        filled = torch.arange(window.shape[-1], device=window.device) < self.own_count[..., None]
        return reference_of(window.masked_fill(~filled, torch.nan), self.own_weight[..., :-1], self.config.percentile)

    def _warm(self, delta: Tensor, count: Tensor) -> None:
        """tau <- decay tau + (1 - decay) mean Delta, or |Delta|, over the rows of each task, which count [E, B, N]."""
        delta = delta if self.config.temperature == "signed" else delta.abs()
        count = count * ~delta.isnan()[..., None]
        total = count.sum(1)
        average = (count * delta.nan_to_num(0.0)[..., None]).sum(1) / total.clamp(min=1e-12)
        new = torch.where(self.tau_known, self.tau.lerp(average, 1 - self.config.decay), average)
        self.tau.copy_(torch.where(total > 0, new, self.tau))
        self.tau_known |= total > 0

    def _own_too(self, target: Tensor, uniform: Tensor | None) -> Tensor:
        """Whether own rows [E, B] are weighed in this step."""
        if not self.config.weigh_own_probability:
            return torch.zeros_like(target, dtype=torch.bool)
        assert uniform is not None, "weigh_own_probability needs random numbers"
        return (uniform.to(target.device) < self.config.weigh_own_probability).gather(-1, target)

    # ---------------------------------------------------------------- report

    def _count(self, target_one_hot: Tensor, source: Tensor, weight: Tensor, success: Tensor) -> None:
        source_one_hot = one_hot(source, target_one_hot)
        values = torch.stack([torch.ones_like(weight), weight])
        outcome = torch.stack([1 - success, success])
        self.sums.mul_(REPORT_DECAY).add_(
            torch.einsum("ebn,ebm,veb,oeb->voenm", target_one_hot, source_one_hot, values, outcome)
        )

    def _count_learned(self, target_one_hot: Tensor, shared: Tensor, weight: Tensor, success: Tensor) -> None:
        rows = torch.stack([weight, weight * shared, weight * shared * success])
        self.learned.mul_(REPORT_DECAY).add_(torch.einsum("ebn,veb->ven", target_one_hot, rows))

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


def one_hot(index: Tensor, like: Tensor) -> Tensor:
    """Indices int64 [...] of the last dimension of `like` [..., N] -> [..., N], of its type; as
    models.encodings.one_hot."""
    return (index[..., None] == torch.arange(like.shape[-1], device=index.device)).to(like.dtype)


def _plain(value: Any) -> Any:
    """NaN becomes None, for JSON."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if value == value else None
