"""Sharing rules: how much a transition of task j counts for task i, as pure tensor functions.

Shapes: `B` transitions of a batch, own and shared ones, `N` tasks; any dimensions may lead (seeds trained side by
side). Q-values are plain tensors: a rule never sees a network. The weight multiplies every term of the target task's
loss (CDS, app. C.1). A new rule is a function or two and one record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Conservative Q-values of transitions (s, a) for target tasks i. Fields the rule does not need may be None."""

    q: Tensor  # [..., B] Q(s, a, i)
    q_policy: Tensor | None = None  # [..., B] mean of Q(s, a', i) over actions a' of the learned policy
    q_tasks: Tensor | None = None  # [..., B, N] Q(s, a, n) for every task n; -inf for one that is not trained

    @classmethod
    def concatenate(cls, parts: Sequence[Scores]) -> Scores:
        """Scores of several batches, concatenated along B."""
        columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(cls)}
        return cls(**{name: torch.cat(column) for name, column in columns.items() if column[0] is not None})

    def of_members(self, members: slice) -> Scores:
        """Scores of a slice of the members, the first dimension."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return Scores(**{name: value[members] for name, value in found.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class RuleContext:
    """Inputs of a rule other than the transition's score; `temperature` is tau, averaged and clipped."""

    reference: Tensor  # [..., B] quantile or mean of the target task's own scores
    temperature: Tensor  # [..., B] or [...]
    target: Tensor  # int64 [..., B] i
    q_tasks: Tensor | None = None  # as in Scores


Score = Callable[[Scores], Tensor]
Reference = Callable[[Tensor, Tensor, float], Tensor]
Weight = Callable[[Tensor, RuleContext], Tensor]


@dataclass(frozen=True, kw_only=True)
class SharingRule:
    """`sources(skills)` bool [N, N]: from which task j (column) task i (row) may draw. `weight(score, context)` gives
    weights [..., B] in [0, 1].

    `score`: score of a transition; None: the rule needs no Q-values. `needs`: the field of Scores it reads besides
    `q`. `reference`: what scores are compared with, unless the router's options name another. `snapshot`: scored by a
    periodic copy of the Q-function. `reward`: shared transitions are relabelled with the target task's reward; else
    their reward is 0.
    """

    name: str
    sources: Callable[[tuple[str, ...]], NDArray[np.bool_]]
    weight: Weight
    score: Score | None = None
    needs: str | None = None
    reference: Reference | None = None
    snapshot: bool = False
    reward: bool = True

    @property
    def uses_q(self) -> bool:
        return self.score is not None

    def other_sources(self, skills: tuple[str, ...], tasks: Sequence[int]) -> NDArray[np.bool_]:
        """From which other task (column) each task (row) may draw, [N, N]: trained `tasks` only."""
        trained = np.isin(np.arange(len(skills)), tasks)
        found: NDArray[np.bool_] = self.sources(skills) & np.outer(trained, trained)
        return found & ~np.eye(len(skills), dtype=np.bool_)


# ---------------------------------------------------------------- scores


def q_value(scores: Scores) -> Tensor:
    """Q(s, a, i)"""
    return scores.q


def advantage_over_policy(scores: Scores) -> Tensor:
    """Minus CQL's regularisation term at (s, a): Q(s, a, i) - E_{a' ~ pi} Q(s, a', i) (CDS, eq. 18)."""
    assert scores.q_policy is not None
    return scores.q - scores.q_policy


# ---------------------------------------------------------------- references


def top_quantile(scores: Tensor, weight: Tensor, percentile: float) -> Tensor:
    """P_k of CDS (eq. 6), k percent from the top: k = 10 is the 90th percentile. Scores [..., R] and their weights
    [..., R] -> [...]; NaN scores are passed over, and without any other the result is NaN.

    Linear interpolation between scores in ascending order, of which the n-th lies at
    (W_n - w_1 / 2 - w_n / 2) / (W - w_1 / 2 - w_R / 2), where W_n = w_1 + ... + w_n: with equal weights numpy's."""
    order = scores.nan_to_num(torch.inf).argsort(-1)
    value, w = (x.gather(-1, order) for x in (scores, (weight * ~scores.isnan()).double()))
    count = (~scores.isnan()).sum(-1, keepdim=True)
    last = (count - 1).clamp(min=0)
    sums, first = w.cumsum(-1), w[..., :1]
    total = (sums[..., -1:] - first / 2 - w.gather(-1, last) / 2).clamp(min=1e-12)
    level = (sums - w / 2 - first / 2) / total
    wanted = 1.0 - percentile / 100.0
    inside = torch.arange(w.shape[-1], device=w.device) < count
    low = ((level <= wanted) & inside).sum(-1, keepdim=True).sub(1).clamp(min=0)
    high = torch.minimum(low + 1, last)
    step = (level.gather(-1, high) - level.gather(-1, low)).clamp(min=1e-12)
    fraction = ((wanted - level.gather(-1, low)) / step).clamp(0, 1)
    below, above = value.gather(-1, low), value.gather(-1, high)
    found = torch.lerp(below, above, fraction.to(value.dtype))
    return torch.where(count > 0, found, torch.nan)[..., 0]


def mean(scores: Tensor, weight: Tensor, percentile: float) -> Tensor:
    """Weighted mean of scores [..., R] -> [...], NaN ones passed over: the expectation over D_i (CDS, eq. 18)."""
    weight = weight * ~scores.isnan()
    return (weight * scores.nan_to_num(0.0)).sum(-1) / weight.sum(-1)


REFERENCES: dict[str, Reference] = {"percentile": top_quantile, "mean": mean}


# ---------------------------------------------------------------- weights


def weight_one(score: Tensor, context: RuleContext) -> Tensor:
    """Weight 1 for every transition that may be drawn."""
    return torch.ones_like(score)


def weight_soft(score: Tensor, context: RuleContext) -> Tensor:
    """CDS (app. C.1): sigmoid(Delta / tau), where Delta = score - reference (eq. 6; CDS (basic): eq. 18)."""
    return torch.sigmoid((score - context.reference) / context.temperature)


def weight_hard(score: Tensor, context: RuleContext) -> Tensor:
    """CDS (eq. 6, algorithm 1): 1 where Delta >= 0, else 0."""
    return (score >= context.reference).to(score.dtype)


def weight_hipi(score: Tensor, context: RuleContext) -> Tensor:
    """HIPI as CDS compares with it (sec. 6): 1 where the target is the task of the highest Q, else 0.

    w = 1[i = argmax_n Q(s, a, n)]"""
    assert context.q_tasks is not None
    return (context.q_tasks.argmax(-1) == context.target).to(score.dtype)


def weight_hipi_partition(score: Tensor, context: RuleContext) -> Tensor:
    """HIPI (Eysenbach et al. 2020, arXiv:2002.11089, sec. 4): probability of relabelling the transition for the target
    task, from which its authors' code samples. The partition function of a task is summed over the batch.

    w = softmax_n(Q(s, a, n) / tau - log sum_b exp(Q(s_b, a_b, n) / tau))_i

    Q replaces the authors' one-sample estimate r_n - log pi + gamma Q(s', a', n)."""
    assert context.q_tasks is not None
    logit = context.q_tasks / context.temperature[..., None]
    logit = logit - logit.logsumexp(-2, keepdim=True).clamp(min=-torch.finfo(logit.dtype).max)
    return logit.softmax(-1).gather(-1, context.target[..., None])[..., 0]


# ---------------------------------------------------------------- sources


def own_task(skills: tuple[str, ...]) -> NDArray[np.bool_]:
    return np.eye(len(skills), dtype=np.bool_)


def any_task(skills: tuple[str, ...]) -> NDArray[np.bool_]:
    return np.ones((len(skills), len(skills)), np.bool_)


def same_skill(skills: tuple[str, ...]) -> NDArray[np.bool_]:
    return np.array([[a == b for b in skills] for a in skills])


RULES: dict[str, SharingRule] = {
    rule.name: rule
    for rule in (
        SharingRule(name="none", sources=own_task, weight=weight_one),
        SharingRule(name="all", sources=any_task, weight=weight_one),
        SharingRule(name="skill", sources=same_skill, weight=weight_one),
        SharingRule(name="cds", sources=any_task, weight=weight_soft, score=q_value, reference=top_quantile),
        SharingRule(name="cds-hard", sources=any_task, weight=weight_hard, score=q_value, reference=top_quantile),
        SharingRule(
            name="cds-basic",
            sources=any_task,
            weight=weight_soft,
            score=advantage_over_policy,
            needs="q_policy",
            reference=mean,
        ),
        SharingRule(name="hipi", sources=any_task, weight=weight_hipi, score=q_value, needs="q_tasks"),
        SharingRule(
            name="hipi-partition", sources=any_task, weight=weight_hipi_partition, score=q_value, needs="q_tasks"
        ),
        SharingRule(
            name="heuristic", sources=any_task, weight=weight_hard, score=q_value, reference=top_quantile, snapshot=True
        ),
        SharingRule(name="uds", sources=any_task, weight=weight_one, reward=False),
    )
}
