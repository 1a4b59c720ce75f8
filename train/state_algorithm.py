"""An offline algorithm on states (docs/algorithms.md). Shapes: `E` members, `B` transitions."""

from __future__ import annotations

import abc
from collections.abc import Hashable

import torch
from torch import Tensor, nn

from data.member_random import MemberRandom
from data.scoring import Scorer
from data.shared_batches import SharedBatches
from data.state_batches import StateBatch
from models.captured import Captured
from models.state_policies import StatePolicy
from train.finite import FiniteCheck
from train.seeding import MemberStream
from train.state_config import StateConfig

Values = dict[str, Tensor]


class StateAlgorithm(nn.Module, abc.ABC):
    """Several members, each a sharing rule and a seed, trained at once. The state_dict (networks, routers) is the
    checkpoint."""

    optimizers: list[torch.optim.Optimizer]
    shared: SharedBatches
    random: MemberRandom  # of the update under way

    def __init__(self, config: StateConfig) -> None:
        super().__init__()
        self.config, self.updates = config, 0
        self.finite = FiniteCheck("members", config.member_names, config.log_every)
        self._captured: Captured[Values] | None = None

    def update(self) -> Values:
        """One update of all members; values [E] to log, which the next update may overwrite."""
        phase = self.begin()
        if self._captured is None:
            self._captured = Captured(self.computed, self.random, self.optimizers)
        values = self._captured(phase)
        self.updates += 1
        self.finish()
        self.finite.add(self.updates, values)
        return values

    @property
    def is_captured(self) -> bool:
        """Whether updates are replayed."""
        return self._captured is not None and self._captured.recorded

    def begin(self) -> Hashable:
        """What is decided on the host before an update. Updates with the same answer compute the same."""
        device = next(self.parameters()).device
        if not hasattr(self, "random") or self.random.device != device:
            self.random, self._captured = self.config.random(device), None
        self.random.begin(MemberStream.UPDATE, self.updates)
        return self.shared.begin(self.updates)

    def computed(self) -> Values:
        """What `compute` gives, without gradients."""
        return {key: value.detach() for key, value in self.compute().items()}

    @abc.abstractmethod
    def compute(self) -> Values:
        """The update on the device: values [E] to log, which must be finite, causes before effects. It reads no number
        from the device and copies none to it, so that it can be captured (models/captured.py)."""

    def finish(self) -> None:
        """What is done on the host after an update."""
        self.shared.finish()

    def warning(self, values: Values) -> str:
        """What a run should say once of the values [E] of an update; '' for nothing."""
        return ""

    @abc.abstractmethod
    def score(self, batch: StateBatch, random: MemberRandom) -> Scorer | None:
        """The Scorer of a batch, None where the algorithm learns no Q-function."""

    @abc.abstractmethod
    def policies(self) -> StatePolicy:
        """The members' policies, for observations as the environment gives them."""
