"""Sharing rules: how much a transition of task j counts for task i, as pure tensor functions.

Shapes: `B` shared transitions, `M` own transitions. Q-values are plain tensors: a rule never sees a network.
The weight multiplies both terms of the target task's loss (CDS, app. C.1). A new rule is one function and one record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RuleContext:
    """`percentile` k in percent from the top: k = 10 compares with the 90th percentile of the own Q-values.

    `temperature` is tau of the target task, already averaged and clipped.
    """

    percentile: float = 10.0
    temperature: float = 1.0


Weigh = Callable[[Tensor, Tensor, RuleContext], Tensor]


@dataclass(frozen=True, kw_only=True)
class SharingRule:
    """`sources(skills)` bool [N, N]: from which task j (column) task i (row) may draw; `weigh` gives weights [B].

    `uses_q` tells the router whether Q-values have to be computed at all.
    """

    name: str
    sources: Callable[[tuple[str, ...]], NDArray[np.bool_]]
    weigh: Weigh
    uses_q: bool = False


def weigh_one(q_shared: Tensor, q_own: Tensor, context: RuleContext) -> Tensor:
    """Weight 1: whatever may be drawn counts in full. [B], [M] -> [B]"""
    return torch.ones_like(q_shared)


def advantage(q_shared: Tensor, q_own: Tensor, context: RuleContext) -> Tensor:
    """Delta of CDS (eq. 6): Q of the shared transition minus the top-k% quantile of the own ones. [B], [M] -> [B]"""
    return q_shared - torch.quantile(q_own.float(), 1.0 - context.percentile / 100.0)


def weigh_cds(q_shared: Tensor, q_own: Tensor, context: RuleContext) -> Tensor:
    """CDS (eq. 6, app. C.1): sigmoid(Delta / tau). [B], [M] -> [B] in [0, 1]"""
    return torch.sigmoid(advantage(q_shared, q_own, context) / context.temperature)


def _own_only(skills: tuple[str, ...]) -> NDArray[np.bool_]:
    return np.eye(len(skills), dtype=np.bool_)


def _everywhere(skills: tuple[str, ...]) -> NDArray[np.bool_]:
    return np.ones((len(skills), len(skills)), np.bool_)


def _same_skill(skills: tuple[str, ...]) -> NDArray[np.bool_]:
    return np.array([[a == b for b in skills] for a in skills])


RULES: dict[str, SharingRule] = {
    rule.name: rule
    for rule in (
        SharingRule(name="none", sources=_own_only, weigh=weigh_one),
        SharingRule(name="all", sources=_everywhere, weigh=weigh_one),
        SharingRule(name="skill", sources=_same_skill, weigh=weigh_one),
        SharingRule(name="cds", sources=_everywhere, weigh=weigh_cds, uses_q=True),
    )
}
