"""Conservative Q-learning with data sharing on states (CQL(H), Kumar et al. 2020, arXiv:2006.04779; CDS, app. C.1).

Several members, each a sharing rule and a seed, are trained at once as one stacked computation; pure losses are in
models/state_losses.py. Randomness of a member's update comes from (seed, update) alone, so that a resumed run repeats
it exactly and members do not depend on each other. Shapes: `E` members, `B` transitions of all target tasks, `K`
sampled actions, `S` and `A` dimensions of a conditioned state and an action.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.transitions import TransitionDataset
from models.conditioning import Conditioner, Normaliser
from models.distributions import sample_with_log_prob
from models.reductions import weighted_mean
from models.state_losses import alpha_loss, conservative_gap, q_target, softmax_sample
from models.updates import gradient_step
from sim.options import check_least, option
from train.actor_critic import ActorCritic, ActorCriticConfig
from train.state_algorithm import Values

MAX_MULTIPLIER = 1e6  # of the Lagrange form (CQL's code)
IDLE_MULTIPLIER = 1e-3  # below it nothing is conservative


@dataclass(frozen=True, kw_only=True)
class CQLConfig(ActorCriticConfig):
    """Every option of `python -m train cql`."""

    actor_lr: float = option(1e-4, "learning rate of Adam, policies and entropy temperatures")
    conservative_weight: float = option(1.0, "beta of CQL, beside half the squared error: twice that of its code")
    lagrange_threshold: float = option(0.0, "tau of CQL's Lagrange form, whose multiplier is learned; 0: none")
    num_sampled_actions: int = option(10, "actions sampled each: uniform, of the policy at s, of the policy at s'")
    num_gradient_actions: int = option(2, "of them, drawn from their softmax, the critic's gradient uses; 0: all")
    bc_steps: int = option(0, "first updates in which the policy clones the data (behaviour cloning)")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 1, "num_sampled_actions")
        check_least(self, 0, "conservative_weight", "num_gradient_actions", "bc_steps", "lagrange_threshold")
        if self.lagrange_threshold and not self.conservative_weight:
            raise ValueError("lagrange_threshold: it bounds conservative_weight times CQL's term, and that weight is 0")


class CQL(ActorCritic):
    config: CQLConfig

    def __init__(
        self, config: CQLConfig, dataset: TransitionDataset, normaliser: Normaliser, conditioner: Conditioner
    ) -> None:
        super().__init__(config, dataset, normaliser, conditioner)
        self.num_policy_actions = config.num_sampled_actions
        self.log_alpha = nn.Parameter(torch.zeros(len(config.members)))
        self.actor_optimizer = torch.optim.Adam(
            [*self.policy.parameters(), self.log_alpha], lr=config.actor_lr, fused=True
        )
        self.optimizers.append(self.actor_optimizer)
        if config.lagrange_threshold:
            self.log_multiplier = nn.Parameter(torch.zeros(len(config.members)))
            self.multiplier_optimizer = torch.optim.Adam([self.log_multiplier], lr=config.critic_lr, fused=True)
            self.optimizers.append(self.multiplier_optimizer)

    def begin(self) -> Hashable:
        return super().begin(), self._clones

    @property
    def _clones(self) -> bool:
        """Whether the policy clones the data in this update."""
        return self.updates < self.config.bc_steps

    def compute(self) -> Values:
        """One step of everything."""
        config, random = self.config, self.random
        self.shared.score_episodes(self.score, random)
        batch, weight = self.shared.sample(random), None
        if self.shared.draws_candidates:
            batch, weight = self.shared.choose(batch, self.score, random)
        rows, action_size = batch.action.shape[1:]
        count = config.num_sampled_actions
        state, next_state = self.states(batch)
        alpha = self.log_alpha.exp().detach()[:, None]
        pi = self.policy(state.detach())
        pi_action, pi_log_prob = sample_with_log_prob(pi, random.normal(rows, 1, action_size))
        with torch.no_grad():
            policy_actions, policy_log_prob = sample_with_log_prob(pi, random.normal(rows, count, action_size))
            next_actions, next_log_prob = self.policy.sample(next_state, random.normal(rows, count, action_size))
            next_q = self.target(next_state, next_actions[:, :, :1]).amin(0)[..., 0]
            td_target = q_target(batch.reward, batch.done, next_q, 0.0, config.discount)
            random_actions = random.uniform(rows, count, action_size) * 2 - 1
            random_log_prob = torch.full_like(next_log_prob, action_size * math.log(0.5))
            sampled = torch.cat([random_actions, policy_actions, next_actions], 2)
            log_prob = torch.cat([random_log_prob, policy_log_prob, next_log_prob], 2)

        strata = random.uniform(2, rows, config.num_gradient_actions).transpose(0, 1).contiguous()
        q, q_sampled, gap = self.conservative_terms(state, batch.action, sampled, log_prob, strata)
        if weight is None:
            _, q_policy, _ = q_sampled.split(count, -1)
            weight = self.shared.weigh(batch, self.scorer(batch, q.detach(), q_policy), random)
        bellman = weighted_mean((q - td_target).square(), weight) / 2
        conservative = weighted_mean(gap, weight)
        penalty = config.conservative_weight * conservative
        if config.lagrange_threshold:
            multiplier = self.log_multiplier.exp()
            excess = penalty - config.lagrange_threshold
            penalty = multiplier.detach() * excess
            gradient_step(self.multiplier_optimizer, -(multiplier * excess.detach().mean(0)).sum())
            self.log_multiplier.data.clamp_(max=math.log(MAX_MULTIPLIER))  # where it can come back from
        critic = (bellman + penalty).sum(0)
        gradient_step(self.critic_optimizer, critic.sum())

        pi_q = self.frozen_q(state, pi_action).amin(0)[..., 0]
        entropy_cost = alpha * pi_log_prob[..., 0]
        gain = self.policy.log_prob(state.detach(), batch.action) if self._clones else pi_q
        actor = weighted_mean(entropy_cost - gain, weight)
        entropy_loss = alpha_loss(self.log_alpha, pi_log_prob[..., 0], action_size, weight)
        gradient_step(self.actor_optimizer, actor.sum() + entropy_loss)
        self.update_target()
        values = {"td_target": td_target.mean(-1), "weight": weight.mean(-1), "q_data": q.amin(0).mean(-1)}
        values |= {"alpha": alpha[:, 0], "bellman": bellman.mean(0), "conservative": conservative.mean(0)}
        if config.lagrange_threshold:
            values["multiplier"] = multiplier
        return values | {"q_policy": pi_q.mean(-1), "actor": actor}

    def warning(self, values: Values) -> str:
        threshold = f"lagrange_threshold {self.config.lagrange_threshold:g}"
        multipliers = values["multiplier"].tolist() if "multiplier" in values else ()
        for name, multiplier in zip(self.config.member_names, multipliers, strict=False):
            if multiplier > 0.99 * MAX_MULTIPLIER:
                return (
                    f"{name}: the Lagrange multiplier is at its bound, {MAX_MULTIPLIER:g}: the conservative term stays "
                    f"above {threshold}; raise it"
                )
            if multiplier < IDLE_MULTIPLIER:
                return (
                    f"{name}: the Lagrange multiplier has fallen to {multiplier:.1g}: the conservative term stays "
                    f"below {threshold}, so that nothing is conservative; lower it, or raise conservative_weight"
                )
        return ""

    def conservative_terms(
        self, state: Tensor, action: Tensor, sampled: Tensor, log_prob: Tensor, strata: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Q of the data's actions [2, E, B], Q of the sampled ones [2, E, B, K] without a gradient, and CQL(H)'s term
        [2, E, B].

        The gradient of its logsumexp is the mean of Q's over the softmax of Q - log p: C actions drawn from there by
        uniform numbers `strata` [2, E, B, C] estimate it without bias, for a fraction of the work; C = 0: all.
        Straight-through: the value is that of the gap, the gradient that of a surrogate."""
        data = action[:, :, None]
        if not strata.shape[-1]:
            q = self.q(state, torch.cat([data, sampled], 2))
            gap = conservative_gap(q[..., 1:], log_prob, q[..., 0])
            return q[..., 0], q[..., 1:].detach(), gap
        with torch.no_grad():
            q_sampled = self.q.values(state, sampled)
            index = softmax_sample(q_sampled - log_prob, strata)[..., None]
            chosen = sampled.expand(2, *sampled.shape).gather(3, index.expand(*index.shape[:-1], action.shape[-1]))
        q = self.q(state, torch.cat([data.expand(2, *data.shape), chosen], 3))
        surrogate = q[..., 1:].mean(-1) - q[..., 0]
        gap = conservative_gap(q_sampled, log_prob, q[..., 0].detach())
        return q[..., 0], q_sampled, gap + surrogate - surrogate.detach()
