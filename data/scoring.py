"""Scores for sharing rules: an algorithm offers a `Scorer` of a batch, of which each rule gets the scores it needs.

Shapes: `B` transitions of a batch, `N` tasks; members trained side by side may lead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from data.sharing import Scores, SharingRule


class Scorer(Protocol):
    """Q-values of a batch's transitions (s, a) for their target tasks i, without gradients. Only the methods that some
    rule needs are called."""

    def q(self) -> Tensor:
        """Q(s, a, i), [..., B]."""
        ...

    def q_policy(self) -> Tensor:
        """Mean of Q(s, a', i) over actions a' of the learned policy, [..., B]."""
        ...

    def q_tasks(self) -> Tensor:
        """Q(s, a, n) of every task n, [..., B, N]; -inf for one that is not trained."""
        ...

    def q_by(self, snapshot: Any) -> Tensor:
        """Q(s, a, i) of an earlier Q-function, [..., B]."""
        ...


def scores_for(rules: Sequence[SharingRule], scorer: Scorer | None, snapshot: Any = None) -> list[Scores | None]:
    """Scores for each rule; each kind is computed once. Rules with `snapshot` are scored by that earlier Q-function.
    None: the rule has no Q-function to share by (yet)."""
    if scorer is None or not any(rule.uses_q for rule in rules):
        return [None] * len(rules)
    needs = {rule.needs for rule in rules}
    q_policy = scorer.q_policy() if "q_policy" in needs else None
    q_tasks = scorer.q_tasks() if "q_tasks" in needs else None
    q = scorer.q()
    q_earlier = None
    if snapshot is not None and any(rule.snapshot for rule in rules):
        q_earlier = scorer.q_by(snapshot)

    def scores_of(rule: SharingRule) -> Scores | None:  # no field that another rule asked for
        score = q_earlier if rule.snapshot else q
        if score is None:
            return None
        return Scores(
            q=score,
            q_policy=q_policy if rule.needs == "q_policy" else None,
            q_tasks=q_tasks if rule.needs == "q_tasks" else None,
        )

    return [scores_of(rule) for rule in rules]
