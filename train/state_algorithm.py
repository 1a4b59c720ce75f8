"""Interface of an offline algorithm on states (docs/algorithms.md). Shapes: `E` members, `B` transitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from data.member_random import MemberRandom
from data.scoring import Scorer
from data.shared_batches import SharedBatches
from data.state_batches import StateBatch
from models.state_policies import StatePolicy
from train.finite import FiniteCheck
from train.state_config import StateConfig


class StateAlgorithm(Protocol):
    """A torch.nn.Module: its state_dict (networks, routers) is the checkpoint."""

    updates: int  # done

    @property
    def config(self) -> StateConfig: ...

    @property
    def shared(self) -> SharedBatches: ...

    @property
    def finite(self) -> FiniteCheck: ...

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]: ...

    def update(self) -> dict[str, Tensor]:
        """One update of all members; values [E] to log."""
        ...

    def score(self, batch: StateBatch, random: MemberRandom) -> Scorer | None:
        """The Scorer of a batch, None where the algorithm learns no Q-function."""
        ...

    def policies(self) -> StatePolicy:
        """The members' policies, for observations as the environment gives them."""
        ...

    # ---------------------------------------------------------------- of every torch.nn.Module

    def to(self, device: torch.device | str, /) -> Self: ...

    def state_dict(self) -> dict[str, Any]: ...

    def named_children(self) -> Iterator[tuple[str, nn.Module]]: ...
