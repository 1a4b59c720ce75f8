"""Stops a training at the first value that is NaN or infinite, before it reaches a checkpoint.

Shapes: `R` rows, each of one of `G` groups: tasks, or members trained side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from models.checkpoint import first_not_finite
from train.run_dir import LAST


class NotFiniteError(ValueError):
    """A loss, a target or a weight became NaN or infinite; the message names the step and the group."""


def is_asynchronous(values: Tensor) -> bool:
    """Whether reading the values would wait for a device."""
    return values.device.type != "cpu"


class FiniteCheck:
    """Checks sums of each step's terms by group: on a CPU in each step; on a GPU, to avoid synchronisation, every
    `every` steps, and by `check` before anything is saved."""

    def __init__(self, kind: str, groups: Sequence[str], every: int) -> None:
        """`kind`: "tasks" or "members", what the groups are."""
        self._kind, self._groups, self._every = kind, tuple(groups), every
        self._pending: list[tuple[int, tuple[str, ...], Tensor]] = []  # step, terms and their sums [terms, G]

    @torch.no_grad()
    def add(
        self,
        step: int,
        rows: Mapping[str, Tensor],
        group: Tensor | None = None,
        scalars: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add the terms of a step: `rows` [R] by name, in causal order; `group` int64 [R] of each row, else row g is of
        group g; `scalars` [] of all groups. NotFiniteError where one is not finite, here or in an earlier step."""
        sums = torch.stack([value.detach().float() for value in rows.values()])
        if group is not None:
            sums = sums.new_zeros(len(rows), len(self._groups)).index_add_(1, group, sums)
        if scalars:
            whole = torch.stack([value.detach().float() for value in scalars.values()])
            sums = torch.cat([sums, whole[:, None].expand(-1, len(self._groups))])
        self._pending.append((step, (*rows, *(scalars or ())), sums))
        if not is_asynchronous(sums) or len(self._pending) >= self._every:
            self.check()

    def check(self) -> None:
        """NotFiniteError for the first step since the last check that was not finite."""
        pending, self._pending = self._pending, []
        if not pending or torch.stack([sums.isfinite().all() for *_, sums in pending]).all():
            return
        step, terms, bad = next((step, terms, bad) for step, terms, sums in pending if (bad := ~sums.isfinite()).any())
        first = int(bad.any(1).nonzero()[0])
        groups = [name for name, is_bad in zip(self._groups, bad[first].tolist(), strict=True) if is_bad]
        which = f"all {self._kind}" if len(groups) == len(self._groups) > 1 else ", ".join(groups)
        raise NotFiniteError(f"step {step}: {terms[first]} of {which} is NaN or infinite")


def check_weights(step: int, **networks: nn.Module | None) -> None:
    """NotFiniteError where a weight of the networks is not finite after this step."""
    for name, network in networks.items():
        if network is not None and (key := first_not_finite(network)):
            raise NotFiniteError(f"step {step}: weight {key} of the {name} is NaN or infinite")


def diverged(error: NotFiniteError, out: Path, rates: str) -> NotFiniteError:
    """The error, with the checkpoint that the run in `out` keeps, and the options `rates` to lower."""
    kept = f"{out / LAST} keeps an earlier state" if (out / LAST).is_file() else "nothing was saved"
    return NotFiniteError(f"{out}: {error}; {kept}; a lower {rates} may help")
