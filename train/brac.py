"""Behaviour regularised actor-critic, with a value penalty (BRAC-v, Wu et al. 2019, arXiv:1911.11361, eq. 5 and 6), and
data sharing by its conservative estimate Q - alpha KL(pi, pi_beta) (CDS, app. D.1).

pi_beta is the behaviour policy of the effective data: it is fitted alone at first, and goes on following what the
sharing rule gives. Shapes: `E` members, `B` transitions of all target tasks, `S` and `A` dimensions of a conditioned
state and an action.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from data.sharing import RULES, SharingRule
from data.transitions import TransitionDataset
from models.conditioning import Conditioner, Normaliser
from models.distributions import gaussian_kl, sampled_kl
from models.reductions import weighted_mean
from models.stacked import TwinQ, initialise_weights
from models.state_losses import q_target
from models.state_policies import TanhGaussianPolicy
from models.updates import gradient_step
from sim.options import check_least, option
from train.actor_critic import ActorCritic, ActorCriticConfig
from train.seeding import MemberStream
from train.state_algorithm import Values
from train.state_scorer import ConditionedQ


@dataclass(frozen=True, kw_only=True)
class BRACConfig(ActorCriticConfig):
    """Every option of `python -m train brac`. Of its code are alpha, its samples, the warm start and the rates of the
    critic and the policy; sizes and batches are those of CDS."""

    critic_lr: float = option(1e-3, "learning rate of Adam, Q-functions")
    divergence_weight: float = option(0.1, "alpha, of KL(pi, pi_beta) in the target and in the policy's loss")
    divergence_samples: int = option(4, "actions of the policy that estimate the KL; 0: in closed form")
    behaviour_lr: float = option(1e-3, "learning rate of Adam, behaviour policies")
    bc_steps: int = option(10_000, "first updates, which fit the behaviour policy alone")
    warm_start_steps: int = option(20_000, "updates after these in which the policy follows pi_beta without Q")
    share_after: int = option(15_000, "updates before which a rule that uses Q-values chooses nothing")
    snapshot_every: int = option(20_000, "updates between snapshots of the Q-function (rule heuristic)")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 0, "divergence_weight", "divergence_samples", "bc_steps", "warm_start_steps")
        for rule in (RULES[name] for name in self.rules):
            if rule.uses_q and self.bc_steps and self.share_after <= self.bc_steps:
                raise self._too_early("share_after", rule)
            if rule.snapshot and self.snapshot_every <= self.bc_steps:
                raise self._too_early("snapshot_every", rule)

    def _too_early(self, name: str, rule: SharingRule) -> ValueError:
        return ValueError(
            f"{name} {getattr(self, name)}: rule {rule.name} would share by a Q-function that has not learned in the "
            f"first {self.bc_steps} updates (bc_steps); give more"
        )


class PenalisedQ(ConditionedQ):
    """Q - alpha KL(pi, pi_beta), the conservative estimate."""

    def __init__(
        self,
        conditioner: Conditioner,
        q: TwinQ,
        policy: TanhGaussianPolicy,
        behaviour: TanhGaussianPolicy,
        divergence_weight: float,
    ) -> None:
        super().__init__(conditioner, q)
        self.policy, self.behaviour, self.divergence_weight = policy, behaviour, divergence_weight

    @torch.no_grad()
    def values(self, observation: Tensor, task_index: Tensor, action: Tensor) -> Tensor:
        divergence = _closed_form(self.policy, self.behaviour, self.conditioner(observation, task_index))
        return super().values(observation, task_index, action) - self.divergence_weight * divergence


def _closed_form(policy: TanhGaussianPolicy, behaviour: TanhGaussianPolicy, state: Tensor) -> Tensor:
    """KL(pi, pi_beta) at states [E, B, S]: [E, B]."""
    return gaussian_kl(policy(state), behaviour(state))


class BRAC(ActorCritic):
    config: BRACConfig

    def __init__(
        self, config: BRACConfig, dataset: TransitionDataset, normaliser: Normaliser, conditioner: Conditioner
    ) -> None:
        super().__init__(config, dataset, normaliser, conditioner)
        members, first = len(config.members), config.random("cpu", MemberStream.FIRST_WEIGHTS, 1)
        behaviour = TanhGaussianPolicy(members, conditioner.size, config.hidden_sizes, self.policy.action_size)
        self.behaviour = initialise_weights(behaviour, members, first.uniform)
        self.actor_optimizer = torch.optim.Adam(self.policy.parameters(), lr=config.actor_lr, fused=True)
        self.behaviour_optimizer = torch.optim.Adam(self.behaviour.parameters(), lr=config.behaviour_lr, fused=True)
        self.optimizers += [self.actor_optimizer, self.behaviour_optimizer]

    def begin(self) -> Hashable:
        return super().begin(), self._fits_behaviour, self._follows_behaviour

    @property
    def _fits_behaviour(self) -> bool:
        """Whether this update is of the behaviour policy alone."""
        return self.updates < self.config.bc_steps

    @property
    def _follows_behaviour(self) -> bool:
        """Whether the policy learns without Q, if it learns."""
        return self.updates < self.config.bc_steps + self.config.warm_start_steps

    def compute(self) -> Values:
        """One step of everything, or of the behaviour policy alone."""
        config, random = self.config, self.random
        batch, weight = self.sample_batch()
        state, next_state = self.states(batch)
        cloning = -weighted_mean(self.behaviour.log_prob(state.detach(), batch.action), weight)
        gradient_step(self.behaviour_optimizer, cloning.sum())
        values = {"weight": weight.mean(-1), "cloning": cloning}
        if self._fits_behaviour:
            return values

        one = batch.action.shape[1], 1, batch.action.shape[2]
        with torch.no_grad():
            next_action, _ = self.policy.sample(next_state, random.normal(*one))
            next_q = self.target(next_state, next_action).amin(0)[..., 0]
            penalty = -config.divergence_weight * self.divergence(next_state)
            td_target = q_target(batch.reward, batch.done, next_q, penalty, config.discount)
        q = self.q(state, batch.action[:, :, None])[..., 0]
        bellman = weighted_mean((q - td_target).square(), weight).sum(0)
        gradient_step(self.critic_optimizer, bellman.sum())

        divergence, gain = self.divergence(state.detach()), torch.zeros_like(td_target)
        if not self._follows_behaviour:
            action, _ = self.policy.sample(state.detach(), random.normal(*one))
            gain = self.frozen_q(state, action).amin(0)[..., 0]
        actor = weighted_mean(config.divergence_weight * divergence - gain, weight)
        gradient_step(self.actor_optimizer, actor.sum())
        self.update_target()
        values |= {"td_target": td_target.mean(-1), "q_data": q.amin(0).mean(-1), "bellman": bellman}
        return values | {"divergence": divergence.mean(-1), "actor": actor}

    def divergence(self, state: Tensor) -> Tensor:
        """KL(pi, pi_beta) at states [E, B, S], with a gradient of the policy's: [E, B]."""
        count = self.config.divergence_samples
        pi, (mean, std) = self.policy(state), self.behaviour(state)
        behaviour = mean.detach(), std.detach()
        if not count:
            return gaussian_kl(pi, behaviour)
        return sampled_kl(pi, behaviour, self.random.normal(state.shape[1], count, mean.shape[-1]))

    def conservative_q(self, q: TwinQ) -> PenalisedQ:
        return PenalisedQ(self.conditioner, q, self.policy, self.behaviour, self.config.divergence_weight)

    def penalty(self, state: Tensor) -> Tensor:
        return self.config.divergence_weight * _closed_form(self.policy, self.behaviour, state)
