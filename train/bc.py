"""Behaviour cloning on states: each member's policy is the maximum-likelihood policy of its weighted batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.shared_batches import SharedBatches
from data.state_batches import StateBatch
from data.transitions import TransitionDataset
from models.conditioning import Conditioner, Normaliser
from models.losses import weighted_mean
from models.state_policies import StatePolicy, TanhGaussianPolicy
from sim.options import option
from train.finite import FiniteCheck
from train.seeding import derive_seed
from train.state_config import StateConfig


@dataclass(frozen=True, kw_only=True)
class BCConfig(StateConfig):
    """Every option of `python -m train bc`. Rules that weigh by Q-values need an algorithm that learns one."""

    rules: tuple[str, ...] = option(("none",), "sharing rules, trained side by side: those without Q-values")
    lr: float = option(3e-4, "learning rate of Adam")


class BC(nn.Module):
    """Shapes: `E` members, `B` transitions of all target tasks."""

    def __init__(
        self, config: BCConfig, dataset: TransitionDataset, normaliser: Normaliser, conditioner: Conditioner
    ) -> None:
        super().__init__()
        benchmark, members = dataset.benchmark, len(config.members)
        self.config, self.updates = config, 0
        self.normaliser, self.conditioner = normaliser, conditioner
        self.policy = TanhGaussianPolicy(members, conditioner.size, config.hidden_sizes, benchmark.action_size)
        self.shared = SharedBatches(dataset, config.sharing)
        self.finite = FiniteCheck("members", config.member_names, config.log_every)
        self.optimizers = [torch.optim.Adam(self.parameters(), lr=config.lr, fused=True)]

    def update(self) -> dict[str, Tensor]:
        """One step of maximum likelihood; values [E] to log."""
        device = next(self.parameters()).device
        generator = torch.Generator(device).manual_seed(derive_seed(self.config.seed, self.updates))
        batch = self.shared.sample(generator)
        weight = self.shared.weigh(batch, None, self.updates, generator)
        log_prob = self.policy.log_prob(self.conditioner(batch.observation, batch.task_index), batch.action)
        loss = -weighted_mean(log_prob, weight)
        self.optimizers[0].zero_grad()
        loss.sum().backward()  # type: ignore[no-untyped-call]
        self.optimizers[0].step()
        self.updates += 1
        self.finite.add(self.updates, {"cloning loss": loss})
        return {"cloning": loss.detach()}

    def score(self, batch: StateBatch, generator: torch.Generator) -> None:
        """No Q-function."""

    def policies(self) -> StatePolicy:
        return StatePolicy(self.normaliser, self.conditioner, self.policy)
