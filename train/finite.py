"""Training stops at the first value that is not finite, before it reaches a checkpoint.

Shapes: `R` rows, each of one of `G` groups: tasks, or members that are trained side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class NotFiniteError(ValueError):
    """A loss, a target or a weight became NaN or infinite; the message says in which step, of which group."""


class FiniteCheck:
    """Sums of each step's terms by group. On a CPU they are looked at in each step; on a GPU, which is not waited for,
    every `every` steps, and by `check` before anything is saved."""

    def __init__(self, groups: Sequence[str], every: int) -> None:
        self._groups, self._every = tuple(groups), every
        self._names: list[tuple[str, str]] = []  # (term, group or "") of each column
        self._pending: list[tuple[int, Tensor]] = []

    @torch.no_grad()
    def add(
        self, step: int, rows: Mapping[str, Tensor], group: Tensor, scalars: Mapping[str, Tensor] | None = None
    ) -> None:
        """`rows` [R] by term, the first causes first, `group` int64 [R] their groups; `scalars` [] of all groups.
        NotFiniteError where one is not finite, here or in a step before."""
        values, whole = torch.stack([value.detach().float() for value in rows.values()]), dict(scalars or {})
        sums = values.new_zeros(len(rows), len(self._groups)).index_add_(1, group, values).flatten()
        if whole:
            sums = torch.cat([sums, torch.stack([value.detach().float() for value in whole.values()])])
        if not self._names:
            self._names = [(term, name) for term in rows for name in self._groups] + [(term, "") for term in whole]
        self._pending.append((step, sums))
        if sums.device.type == "cpu" or len(self._pending) >= self._every:
            self.check()

    def check(self) -> None:
        """NotFiniteError for the first step since the last call that was not finite."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        finite = torch.stack([sums for _, sums in pending]).isfinite().cpu()
        for (step, _), row in zip(pending, finite, strict=True):
            if not row.all():
                bad = [self._names[k] for k in (~row).nonzero()[:, 0].tolist()]
                term = bad[0][0]
                groups = [name for each, name in bad if each == term and name]
                of = f" of {', '.join(groups)}" if 0 < len(groups) < len(self._groups) else ""
                raise NotFiniteError(f"step {step}: {term}{of} is NaN or infinite")


def check_weights(step: int, **networks: nn.Module | None) -> None:
    """NotFiniteError where a weight of these networks is not finite after this step."""
    for name, network in networks.items():
        for key, weight in network.named_parameters() if network is not None else ():
            if not weight.isfinite().all():
                raise NotFiniteError(f"step {step}: weight {key} of the {name} is NaN or infinite")
