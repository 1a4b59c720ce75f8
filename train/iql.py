"""Implicit Q-learning (IQL, Kostrikov et al. 2021, arXiv:2110.06169): values of the data's actions alone, an upper
expectile of which takes the place of a maximum, and a policy that clones the data by their advantages.

The policy is N(tanh(f(s)), std), with a std [A] of its own that no state changes, and acts by its mean (IQL's code).
Shapes: `E` members, `B` transitions of all target tasks, `A` dimensions of an action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.transitions import TransitionDataset
from models.conditioning import Conditioner, Normaliser
from models.reductions import weighted_mean
from models.stacked import StackedMLP, initialise_weights
from models.state_losses import advantage_weight, expectile_loss, q_target
from models.state_policies import LOG_STD, DeterministicPolicy
from models.updates import gradient_step
from sim.options import check_fraction, check_least, option
from train.actor_critic import ActorCritic, ActorCriticConfig
from train.seeding import MemberStream
from train.state_algorithm import Values


@dataclass(frozen=True, kw_only=True)
class IQLConfig(ActorCriticConfig):
    """Every option of `python -m train iql`; defaults: the paper's for locomotion (app. B)."""

    hidden_sizes: tuple[int, ...] = option((256, 256), "units of the hidden layers")
    value_lr: float = option(3e-4, "learning rate of Adam, value functions")
    expectile: float = option(0.7, "tau, of the value function's loss; 0.9 in the paper's mazes")
    inverse_temperature: float = option(3.0, "beta, of the policy's weights exp(beta A); 10 in the paper's mazes")
    max_advantage_weight: float = option(100.0, "bound of these weights")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "expectile")
        check_least(self, 0, "inverse_temperature")
        check_least(self, 1, "max_advantage_weight")


class IQL(ActorCritic):
    config: IQLConfig
    policy: DeterministicPolicy
    num_policy_actions = 1

    def __init__(self, config: IQLConfig, data: TransitionDataset, normaliser: Normaliser, conditioner: Conditioner):
        super().__init__(config, data, normaliser, conditioner, DeterministicPolicy)
        members, first = len(config.members), config.random("cpu", MemberStream.FIRST_WEIGHTS, 1)
        value = StackedMLP(members, conditioner.size, config.hidden_sizes, 1)
        self.value = initialise_weights(value, members, first.uniform)
        self.log_std = nn.Parameter(torch.zeros(members, 1, data.benchmark.action_size))
        policy = [*self.policy.parameters(), self.log_std]
        self.actor_optimizer = torch.optim.Adam(policy, lr=config.actor_lr, fused=True)
        self.value_optimizer = torch.optim.Adam(self.value.parameters(), lr=config.value_lr, fused=True)
        self.optimizers += [self.actor_optimizer, self.value_optimizer]

    def compute(self) -> Values:
        """One step of everything: the value function, and by the new one the Q-functions and the policy."""
        config = self.config
        batch, weight = self.sample_batch()
        state, next_state = self.states(batch)
        with torch.no_grad():
            q_data = self.target(state, batch.action[:, :, None]).amin(0)[..., 0]
        value = self.value(state.detach())[..., 0]
        value_loss = weighted_mean(expectile_loss(q_data - value, config.expectile), weight)
        gradient_step(self.value_optimizer, value_loss.sum())

        with torch.no_grad():
            next_value = self.value(next_state)[..., 0]
            advantage = q_data - self.value(state)[..., 0]
            td_target = q_target(batch.reward, batch.done, next_value, 0.0, config.discount)
        q = self.q(state, batch.action[:, :, None])[..., 0]
        bellman = weighted_mean((q - td_target).square(), weight).sum(0)
        gradient_step(self.critic_optimizer, bellman.sum())

        exponential = advantage_weight(advantage, config.inverse_temperature, config.max_advantage_weight)
        actor = -weighted_mean(exponential * self.log_prob(state.detach(), batch.action), weight)
        gradient_step(self.actor_optimizer, actor.sum())
        self.update_target()
        values = {"weight": weight.mean(-1), "value": value_loss, "advantage": advantage.mean(-1)}
        values |= {"td_target": td_target.mean(-1), "q_data": q.amin(0).mean(-1), "bellman": bellman}
        return values | {"actor": actor}

    def log_prob(self, state: Tensor, action: Tensor) -> Tensor:
        """log N(a; tanh(f(s)), std) of the data's actions [E, B, A]: [E, B]."""
        log_std = self.log_std.clamp(*LOG_STD)
        standardised = (action - self.policy.action(state)) / log_std.exp()
        return (-0.5 * standardised.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
