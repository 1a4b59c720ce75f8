"""TD3 with behaviour cloning (TD3+BC, Fujimoto and Gu 2021, arXiv:2106.06860) on states.

Shapes: `E` members, `B` transitions of all target tasks, `A` dimensions of an action.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from data.transitions import TransitionDataset
from models.conditioning import Conditioner, Normaliser
from models.reductions import weighted_mean
from models.state_policies import DeterministicPolicy
from models.updates import frozen, gradient_step, update_average
from sim.options import check_least, option
from train.actor_critic import ActorCritic, ActorCriticConfig
from train.state_algorithm import Values
from train.td3_target import TD3Options, smoothed_target


@dataclass(frozen=True, kw_only=True)
class TD3BCConfig(TD3Options, ActorCriticConfig):
    """Every option of `python -m train td3-bc`; defaults: table 3 of the paper."""

    hidden_sizes: tuple[int, ...] = option((256, 256), "units of the hidden layers")
    q_weight: float = option(2.5, "alpha of Q, over the batch's mean |Q|, beside the squared error of cloning")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 0, "q_weight")
        self.check_td3()


class TD3BC(ActorCritic):
    """`target_policy` is the running average of the policy."""

    config: TD3BCConfig
    policy: DeterministicPolicy
    num_policy_actions = 1

    def __init__(
        self, config: TD3BCConfig, dataset: TransitionDataset, normaliser: Normaliser, conditioner: Conditioner
    ) -> None:
        super().__init__(config, dataset, normaliser, conditioner, DeterministicPolicy)
        self.target_policy = copy.deepcopy(self.policy).requires_grad_(False)
        self.actor_optimizer = torch.optim.Adam(self.policy.parameters(), lr=config.actor_lr, fused=True)
        self.optimizers.append(self.actor_optimizer)

    def begin(self) -> Hashable:
        return super().begin(), self._moves_policy

    @property
    def _moves_policy(self) -> bool:
        """Whether this update is of the policy and the targets too."""
        return (self.updates + 1) % self.config.policy_delay == 0

    def compute(self) -> Values:
        config = self.config
        batch, weight = self.sample_batch()
        state, next_state = self.states(batch)
        noise = self.random.normal(*batch.action.shape[1:])
        targets = self.target_policy, self.target
        td_target = smoothed_target(config, config.discount, targets, next_state, batch.reward, batch.done, noise)
        q = self.q(state, batch.action[:, :, None])[..., 0]
        bellman = weighted_mean((q - td_target).square(), weight).sum(0)
        gradient_step(self.critic_optimizer, bellman.sum())
        values = {"td_target": td_target.mean(-1), "weight": weight.mean(-1), "q_data": q.amin(0).mean(-1)}
        values["bellman"] = bellman
        if self._moves_policy:
            actor = self.actor_loss(state.detach(), batch.action, weight)
            gradient_step(self.actor_optimizer, actor.sum())
            self.update_target()
            update_average(self.target_policy, self.policy, config.target_update_rate)
            values["actor"] = actor
        return values

    def actor_loss(self, state: Tensor, action: Tensor, weight: Tensor) -> Tensor:
        """(pi(s) - a)^2 - lambda Q_1(s, pi(s)), lambda = alpha / mean |Q_1| (eq. 3 and 5): [E]. States [E, B, S], the
        data's actions [E, B, A], weights [E, B]."""
        own = self.policy.action(state)
        with frozen(self.q):
            q = self.q.first(state, own)
        scale = self.config.q_weight / weighted_mean(q.detach().abs(), weight).clamp(min=1e-6)
        cloning = weighted_mean((own - action).square().mean(-1), weight)
        return cloning - scale * weighted_mean(q, weight)
