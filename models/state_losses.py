"""Losses of learners that see states, as pure functions: Q is the value itself. `E` members, `B` transitions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.reductions import weighted_mean


def conservative_gap(q_sampled: Tensor, log_density: Tensor, q_data: Tensor) -> Tensor:
    """Conservative term of CQL(H) for each transition (eq. 4), the logsumexp by importance sampling:

        log 1/K sum_k exp(Q(s, a_k)) / p(a_k | s)  -  Q(s, a)

    `q_sampled` and `log_density`: Q and log p of K sampled actions [..., B, K]; `q_data`: Q of the data's action
    [..., B]."""
    return (q_sampled - log_density).logsumexp(-1) - math.log(q_sampled.shape[-1]) - q_data


def softmax_sample(logits: Tensor, uniform: Tensor) -> Tensor:
    """Stratified sample of softmax(logits [..., K]) by numbers [..., C], uniform in [0, 1): indices [..., C], one from
    each of C strata of equal probability, so their expected counts are those of independent draws and their variance is
    lower."""
    total, count = logits.softmax(-1).cumsum(-1), uniform.shape[-1]
    point = (uniform + torch.arange(count, device=logits.device)) / count
    return torch.searchsorted(total, point * total[..., -1:]).clamp(max=logits.shape[-1] - 1)


def q_target(reward: Tensor, done: Tensor, next_q: Tensor, next_entropy: Tensor | float, discount: float) -> Tensor:
    """Soft TD target r + gamma (1 - d) (min_k Q_k(s', a') - alpha log pi(a' | s')), a' ~ pi (SAC, arXiv:1801.01290,
    eq. 2 and 3). All [E, B]; `next_entropy` is -alpha log pi."""
    return reward + discount * (1 - done) * (next_q + next_entropy)


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """|tau - 1(u < 0)| u^2 of each error u, whose minimum is the tau-expectile (IQL, arXiv:2110.06169, eq. 4)."""
    return torch.where(error < 0, 1 - expectile, expectile) * error.square()


def advantage_weight(advantage: Tensor, inverse_temperature: float, most: float) -> Tensor:
    """exp(beta A), at most `most`: weights of a policy's log-likelihood (IQL, eq. 7; AWR, arXiv:1910.00177)."""
    return (inverse_temperature * advantage).clamp(max=math.log(most)).exp()


def smoothed_action(action: Tensor, noise: Tensor, std: float, clip: float) -> Tensor:
    """Actions of a target policy, smoothed by standard normal noise of their shape: (a + clip(std eps, -c, c)), within
    [-1, 1] (TD3, arXiv:1802.09477, eq. 14)."""
    return (action + (std * noise).clamp(-clip, clip)).clamp(-1, 1)


def alpha_loss(log_alpha: Tensor, log_density: Tensor, action_size: int, weight: Tensor | None = None) -> Tensor:
    """Loss of the entropy coefficient alpha, with target entropy -A (SAC, arXiv:1812.05905, eq. 18): log_alpha [E],
    log-densities [E, B], and the weights [E, B] of the actor's loss, if any: where the policy is not trained, its
    entropy says nothing."""
    excess = log_density.detach() - action_size
    return -(log_alpha * (excess.mean(-1) if weight is None else weighted_mean(excess, weight))).sum()
