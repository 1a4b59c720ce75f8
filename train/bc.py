"""Behaviour cloning on states: each member's policy is the maximum-likelihood policy of its weighted batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.shared_batches import SharedBatches
from data.state_batches import StateBatch
from data.transitions import TransitionDataset
from models.conditioning import Conditioner, Normaliser
from models.reductions import weighted_mean
from models.state_policies import StatePolicy, TanhGaussianPolicy
from models.updates import gradient_step
from sim.options import option
from train.finite import FiniteCheck
from train.seeding import derive_seed
from train.state_config import StateConfig


@dataclass(frozen=True, kw_only=True)
class BCConfig(StateConfig):
    """Every option of `python -m train bc`."""

    rules: tuple[str, ...] = option(("none",), "sharing rules, trained side by side: those that need no Q-values")
    lr: float = option(3e-4, "learning rate of Adam")


class BC(nn.Module):
    def __init__(self, config: BCConfig, data: TransitionDataset, normaliser: Normaliser, conditioner: Conditioner):
        super().__init__()
        self.config, self.normaliser, self.conditioner, self.updates = config, normaliser, conditioner, 0
        sizes = len(config.members), conditioner.size, config.hidden_sizes
        self.policy = TanhGaussianPolicy(*sizes, data.benchmark.action_size)
        self.shared = SharedBatches(data, config.sharing)
        self.finite = FiniteCheck("members", config.member_names, config.log_every)
        self.optimizers = [torch.optim.Adam(self.parameters(), lr=config.lr, fused=True)]

    def update(self) -> dict[str, Tensor]:
        device, seed = next(self.parameters()).device, derive_seed(self.config.seed, self.updates)
        generator = torch.Generator(device).manual_seed(seed)
        batch, weight = self.shared.sample_weighted(self.score, self.updates, generator)
        log_prob = self.policy.log_prob(self.conditioner(batch.observation, batch.task_index), batch.action)
        loss = -weighted_mean(log_prob, weight)
        gradient_step(self.optimizers[0], loss.sum())
        self.updates += 1
        self.finite.add(self.updates, {"cloning loss": loss})
        return {"cloning": loss.detach()}

    def score(self, batch: StateBatch, generator: torch.Generator) -> None:
        """No Q-function."""

    def policies(self) -> StatePolicy:
        return StatePolicy(self.normaliser, self.conditioner, self.policy)
