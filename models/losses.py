"""Losses as pure functions of tensors. For pictures Q is a logit, the Q-value its sigmoid, in [0, 1]; for states it is
the value itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MOTION_WEIGHT = 2.0  # in cloning, beside the command's


def bellman_target(reward: Tensor, done: Tensor, span: Tensor, next_value: Tensor, discount: float) -> Tensor:
    """The soft label of QT-Opt (eq. 1) over n = `span` steps, of which only the last has a reward. All [B].

    y = clip(gamma^(n - 1) * (r + gamma * (1 - d) * V(s')), 0, 1)
    """
    return (discount ** (span - 1) * (reward + discount * (1 - done) * next_value)).clamp(0, 1)


def bellman_loss(logit: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted cross-entropy between sigmoid(logit) and the target (QT-Opt, sec. 4.2; weights: CDS, app. C.1). [B]

    L = sum_b w_b CE(sigmoid(q_b), y_b) / sum_b w_b
    """
    each = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    return weighted_mean(each, weight), {"q_data": logit.detach().sigmoid().mean(), "target": target.mean()}


def conservative_loss(logits: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Regress unseen actions, sampled from the softmax of their own Q-values, to Q = 0 (CDS, app. C.1).

    Logits [B, K] of K unseen actions, weight [B]. The softmax is taken of the logits, not of Q in [0, 1], where it
    would hardly tell actions apart. Its expectation is taken exactly:
    L = sum_b w_b sum_k softmax(q_b)_k CE(sigmoid(q_bk), 0) / sum_b w_b
    """
    share = logits.detach().softmax(dim=1)
    each = (share * F.softplus(logits)).sum(dim=1)
    return weighted_mean(each, weight), {"q_unseen": (share * logits.detach().sigmoid()).sum(1).mean()}


def cloning_loss(mean: Tensor, command_logits: Tensor, action: Tensor, bound: Tensor, weight: Tensor) -> Tensor:
    """Behaviour cloning of actions [B, 5]: `MOTION_WEIGHT` times the squared error of the motion [B, 4] in units of its
    bounds, plus the cross-entropy of the command [B, 4]; their mean weighted by `weight` [B] (1 for steps of successful
    episodes, say)."""
    motion = F.mse_loss(mean, action[:, :4] / bound, reduction="none").sum(dim=1)
    command = F.cross_entropy(command_logits, action[:, 4].long(), reduction="none")
    return weighted_mean(MOTION_WEIGHT * motion + command, weight)


def landmark_loss(predicted: Tensor, landmark: Tensor) -> Tensor:
    """Auxiliary state prediction (James et al. 2017, arXiv:1707.02267, sec. 3.3): squared error of landmarks [B, L, 5],
    summed over those of a picture and averaged over pictures."""
    return (predicted - landmark).square().sum((1, 2)).mean()


def point_loss(logits: Tensor, point: Tensor, visible: Tensor) -> Tensor:
    """Cross-entropy of attention logits [B, P, M, M] with where things are: `point` [B, P, 2], right and down, in sides
    of the image, spread bilinearly over the four nearest cells. Summed over the visible [B, P], averaged over pictures.
    """
    size = logits.shape[-1]
    place = (point * size - 0.5).clamp(0, size - 1)
    low = place.floor().clamp(max=size - 2)
    part = place - low
    log_share = logits.flatten(2).log_softmax(-1)
    corner = (low[..., 1] * size + low[..., 0]).long()
    each = torch.zeros_like(point[..., 0])
    for right in (0, 1):
        for down in (0, 1):
            share = (part[..., 0] if right else 1 - part[..., 0]) * (part[..., 1] if down else 1 - part[..., 1])
            found = log_share.gather(-1, (corner + down * size + right)[..., None])[..., 0]
            each = each - share * found
    return (each * visible).sum(-1).mean()


def calibration_error(q: Tensor, outcome: Tensor, bins: int = 5) -> Tensor:
    """How far Q-values in [0, 1] lie from what came, both [B]: the distance of their means in each of equal bins of Q,
    weighted by how many lie there (expected calibration error, arXiv:1706.04599, eq. 3)."""
    place = F.one_hot((bins * q).long().clamp(max=bins - 1), bins).to(q.dtype)
    return (place.T @ (q - outcome)).abs().sum() / len(q)


def conservative_gap(q_sampled: Tensor, log_density: Tensor, q_data: Tensor) -> Tensor:
    """CQL(H)'s term of each transition (eq. 4), the logsumexp over actions estimated by importance:

        log 1/K sum_k exp(Q(s, a_k)) / p(a_k | s)  -  Q(s, a)

    Q of sampled actions and the log-densities they were drawn with [..., B, K], Q of the data's action [..., B]."""
    return (q_sampled - log_density).logsumexp(-1) - math.log(q_sampled.shape[-1]) - q_data


def softmax_sample(logits: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices [..., count] drawn from softmax(logits [..., K]), each from a stratum of its own of equal probability, so
    that every one of the K comes as often as by independent draws, with less scatter."""
    total = logits.softmax(-1).cumsum(-1)
    start = torch.rand((*logits.shape[:-1], count), generator=generator, device=generator.device).to(logits.device)
    point = (start + torch.arange(count, device=logits.device)) / count
    return torch.searchsorted(total, point * total[..., -1:]).clamp(max=logits.shape[-1] - 1)


def q_target(reward: Tensor, done: Tensor, next_q: Tensor, next_entropy: Tensor, discount: float) -> Tensor:
    """r + gamma (1 - d) (min_k Q_k(s', a') - alpha log pi(a' | s')), a' of the policy (SAC, arXiv:1801.01290, eq. 2 and
    3). All [E, B]; the entropy term is `next_entropy`."""
    return reward + discount * (1 - done) * (next_q + next_entropy)


def temperature_loss(log_alpha: Tensor, log_density: Tensor, action_size: int) -> Tensor:
    """Keeps the entropy at -A (arXiv:1812.05905, eq. 18): log_alpha [E], log-densities [E, B]."""
    return -(log_alpha * (log_density.detach().mean(-1) - action_size)).sum()


def weighted_mean(each: Tensor, weight: Tensor) -> Tensor:
    """Over the last dimension: [..., B] with weights that broadcast to it -> [...]."""
    return (weight * each).sum(-1) / weight.sum(-1).clamp(min=1e-6)
