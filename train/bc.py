"""Behaviour cloning on states: each member's policy is the maximum-likelihood policy of its weighted batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from data.member_random import MemberRandom
from data.shared_batches import SharedBatches
from data.state_batches import StateBatch
from data.transitions import TransitionDataset
from models.conditioning import Conditioner, Normaliser
from models.reductions import weighted_mean
from models.stacked import initialise_weights
from models.state_policies import StatePolicy, TanhGaussianPolicy
from models.updates import gradient_step
from sim.options import option
from train.seeding import MemberStream
from train.state_algorithm import StateAlgorithm, Values
from train.state_config import OF_REWARDS_AND_Q, StateConfig


@dataclass(frozen=True, kw_only=True)
class BCConfig(StateConfig):
    """Every option of `python -m train bc`."""

    unused = OF_REWARDS_AND_Q
    rules: tuple[str, ...] = option(("none",), "sharing rules, trained side by side: those that need no Q-values")
    lr: float = option(3e-4, "learning rate of Adam")


class BC(StateAlgorithm):
    config: BCConfig

    def __init__(self, config: BCConfig, data: TransitionDataset, normaliser: Normaliser, conditioner: Conditioner):
        super().__init__(config)
        self.normaliser, self.conditioner = normaliser, conditioner
        sizes = len(config.members), conditioner.size, config.hidden_sizes
        network, first = TanhGaussianPolicy(*sizes, data.benchmark.action_size), MemberStream.FIRST_WEIGHTS
        self.policy = initialise_weights(network, sizes[0], config.random("cpu", first).uniform)
        self.shared = SharedBatches(data, config)
        self.optimizers = [torch.optim.Adam(self.parameters(), lr=config.lr, fused=True)]

    def compute(self) -> Values:
        batch, weight = self.shared.sample_weighted(self.score, self.random)
        log_prob = self.policy.log_prob(self.conditioner(batch.observation, batch.task_index), batch.action)
        loss = -weighted_mean(log_prob, weight)
        gradient_step(self.optimizers[0], loss.sum())
        return {"cloning": loss}

    def score(self, batch: StateBatch, random: MemberRandom) -> None:
        """No Q-function."""

    def policies(self) -> StatePolicy:
        return StatePolicy(self.normaliser, self.conditioner, self.policy)
