"""Routes whole episodes: a sharing rule's weights of all episodes for all tasks, from their scores.

A step has its episode's score, so references, temperatures and means count an episode by its length. Shapes: `E`
members, `N` target tasks, `K` episodes, `P` of them scored beside one batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.distributed import gather
from data.episode_scores import EpisodeScores
from data.router_config import RouterConfig
from data.sharing import RULES, RuleContext, mean


class EpisodeRouter(nn.Module):
    """D_eff of every task, as weights of episodes."""

    _own: Tensor  # bool [N, K]
    _others: Tensor  # bool [N, K], those that a task may share
    _length: Tensor  # float32 [K]
    _own_weight: Tensor  # float32 [K], what an episode counts for the reference of its own task

    def __init__(
        self,
        config: RouterConfig,
        scores: EpisodeScores,
        sources: NDArray[np.bool_],
        own_weight: NDArray[np.floating] | None = None,
    ) -> None:
        """`sources` [N, N]: from which task (column) each trained task (row) may draw. `own_weight` [K]: what a step of
        each episode counts for the reference of its own task; default: 1."""
        super().__init__()
        self.config, self.rule, self.scores = config, RULES[config.rule], scores
        task, length = scores.schedule.episodes.task, scores.schedule.episodes.length
        own = np.arange(len(sources))[:, None] == task
        self.register_buffer("_own", torch.from_numpy(own), persistent=False)
        self.register_buffer("_others", torch.from_numpy(sources[:, task] & ~own), persistent=False)
        self.register_buffer("_length", torch.from_numpy(length).float(), persistent=False)
        weight = length if own_weight is None else length * own_weight
        self.register_buffer("_own_weight", torch.from_numpy(weight).float(), persistent=False)
        self._known: dict[int, Tensor] = {}  # weights by the batch since which they count
        self._held: Tensor | None = None
        self._held_of: Tensor | None = None  # what it holds

    @torch.no_grad()
    def write(self, visit: Tensor, episode: Tensor, score: Tensor) -> None:
        """Keep the scores [E, P, N] of episodes [P] as those of visits [P], of this process and of the others."""
        self.scores.write(gather(visit), gather(episode), _of_all(score))

    @torch.no_grad()
    def add(self, number: int, episode: Tensor, score: Tensor) -> bool:
        """Take scores as `write`, computed with batch `number`. Whether they finished a version."""
        return self.scores.add(number, gather(episode), _of_all(score))

    @torch.no_grad()
    def weights(self, number: int) -> Tensor | None:
        """The rule's weights [E, N, K] that count for batch `number`, own episodes weighed too; 0 where a task may not
        draw, or nothing was scored; None before the first scores and `share_after`."""
        found = self.scores.version_of(number)
        if found is None or number < self.config.share_after:
            return None
        version, since = found
        if since not in self._known:
            current = self.scores.since.tolist()
            self._known = {key: weight for key, weight in self._known.items() if key in current}
            self._known[since] = self._weights(self.scores.versions[version])
        return self._known[since]

    @torch.no_grad()
    def held_weights(self, number: int) -> Tensor | None:
        """As `weights`, in memory that stays where it is, from which a CUDA graph reads them."""
        weight = self.weights(number)
        if weight is None:
            return None
        if self._held is None:
            self._held = torch.empty_like(weight)
        if self._held_of is not weight:
            self._held_of = weight
            self._held.copy_(weight)
        return self._held

    def weight_of(self, target: Tensor, episode: Tensor, number: int) -> Tensor | None:
        """Weights [E, B] that count in batch `number` of the episodes [E, B] for targets [E, B]; None before the first
        scores."""
        weights = self.held_weights(number)
        if weights is None:
            return None
        return weights[torch.arange(len(target), device=target.device)[:, None], target, episode]

    def forget(self) -> None:
        """Drop the scores of visits: later ones come from another Q-function."""
        self.scores.forget()

    def reference(self) -> Tensor:
        """Reference over D_i of each task, [E, N], of the latest scores; NaN before the first."""
        return self._reference(self.scores.versions[1])

    def temperature(self) -> Tensor:
        """tau of each task, [E, N], of the latest scores."""
        score = self.scores.versions[1]
        reference = self._reference(score) if self.config.is_adaptive else torch.zeros_like(score[..., 0])
        return self._temperature(score, reference)

    def mean_weights(self, member: int) -> Tensor:
        """Mean weight [N, N] of each source (column) for each target (row), by the latest scores; 1 for a task's own;
        NaN before the first, and where a task may not draw."""
        of_task = self._own * self._length
        itself = torch.eye(len(of_task), dtype=torch.bool, device=of_task.device)
        known = self._others.float() @ of_task.T > 0
        if int(self.scores.since[1]) < 0:
            known = torch.zeros_like(known)
        weight = self._weights(self.scores.versions[1])[member] @ of_task.T / of_task.sum(1)
        return torch.where(itself & (of_task.sum(1) > 0), 1.0, weight.masked_fill(~known, torch.nan))

    def area_under_roc(self, accepted: NDArray[np.bool_], member: int) -> Tensor:
        """Area under the ROC curve [N] of the latest scores of others' episodes, those that succeed at the target,
        `accepted` [K, N], against the rest; NaN where there are none of either."""
        areas, others = [], self._others.cpu().numpy()
        for task, score in enumerate(self.scores.versions[1, member].cpu().numpy()):
            judged, success = others[task] & ~np.isnan(score), accepted[:, task]
            areas.append(area_under_roc(score[judged & success], score[judged & ~success]))
        return torch.tensor(areas)

    def _weights(self, score: Tensor) -> Tensor:
        num_tasks = score.shape[1]
        reference = self._reference(score) if self.rule.reference else torch.zeros_like(score[..., 0])
        q_tasks = None
        if self.rule.needs == "q_tasks":
            q_tasks = score.transpose(1, 2).nan_to_num(-torch.inf)[:, None].expand(-1, num_tasks, -1, -1)
        context = RuleContext(
            reference=reference[..., None].expand(score.shape),
            temperature=self._temperature(score, reference)[..., None].expand(score.shape),
            target=torch.arange(num_tasks, device=score.device)[:, None].expand(score.shape),
            q_tasks=q_tasks,
        )
        weight = self.rule.weight(score, context).nan_to_num(0.0)
        return torch.where(score.isnan(), 0.0, weight) * (self._own | self._others)

    def _reference(self, score: Tensor) -> Tensor:
        reference_of = self.config.reference_of
        assert reference_of is not None
        own_score = score.masked_fill(~self._own, torch.nan)
        return reference_of(own_score, self._own_weight.expand(score.shape), self.config.percentile)

    def _temperature(self, score: Tensor, reference: Tensor) -> Tensor:
        """tau by the mean over the episodes of a version: of Delta over shared ones, or of |Delta| over own and shared
        ones, which are half of a batch each."""
        average = torch.zeros_like(reference)
        if self.config.is_adaptive:
            delta, others = score - reference[..., None], self._others * self._length
            if self.config.temperature == "signed":
                average = mean(delta, others, 0.0)
            else:
                halves = [mean(delta.abs(), count, 0.0) for count in (self._own * self._own_weight, others)]
                average = torch.stack(halves).nanmean(0)
        return self.config.tau(average.nan_to_num(0.0))


def _of_all(score: Tensor) -> Tensor:
    """Scores [E, P, N] of all processes."""
    return gather(score.transpose(0, 1).float()).transpose(0, 1)


def area_under_roc(high: NDArray[np.floating], low: NDArray[np.floating]) -> float:
    """Area under the ROC curve: P(one of `high` [H] > one of `low` [L]), ties count half; NaN where one is empty."""
    if not len(high) or not len(low):
        return float("nan")
    low = np.sort(low)
    below = np.searchsorted(low, high, side="left") + np.searchsorted(low, high, side="right")
    return float(below.mean() / (2 * len(low)))
