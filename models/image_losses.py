"""Losses of learners that see images, and a calibration metric, as pure functions: Q is a logit, its sigmoid the
Q-value in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.encodings import one_hot
from models.reductions import weighted_mean

MOTION_WEIGHT = 2.0  # of the motion's squared error in behaviour cloning, beside the command's cross-entropy


def bellman_target(reward: Tensor, done: Tensor, n_step: Tensor, next_value: Tensor, discount: float) -> Tensor:
    """Bellman target of QT-Opt (eq. 1), a probability, over `n_step` steps of which only the last has a reward. [B]

    y = clip(gamma^(n - 1) * (r + gamma * (1 - d) * V(s')), 0, 1)
    """
    return (discount ** (n_step - 1) * (reward + discount * (1 - done) * next_value)).clamp(0, 1)


def bellman_loss(logit: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted cross-entropy between sigmoid(logit) and the target (QT-Opt, sec. 4.2; weights: CDS, app. C.1). [B]

    L = sum_b w_b CE(sigmoid(q_b), y_b) / sum_b w_b
    """
    each = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    return weighted_mean(each, weight), {"q_data": logit.detach().sigmoid().mean(), "target": target.mean()}


def conservative_loss(logits: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Regress unseen actions, sampled from the softmax of their own Q-values, to Q = 0 (CDS, app. C.1).

    Logits [B, K] of K unseen actions, weight [B]. The softmax is over the logits, because over Q in [0, 1] it would be
    almost uniform. Its expectation is exact:
    L = sum_b w_b sum_k softmax(q_b)_k CE(sigmoid(q_bk), 0) / sum_b w_b
    """
    probability = logits.detach().softmax(dim=1)
    each = (probability * F.softplus(logits)).sum(dim=1)
    return weighted_mean(each, weight), {"q_unseen": (probability * logits.detach().sigmoid()).sum(1).mean()}


def cloning_loss(mean: Tensor, command_logits: Tensor, action: Tensor, bound: Tensor, weight: Tensor) -> Tensor:
    """Behaviour cloning of actions [B, 5], weighted by `weight` [B] (for example 1 for steps of successful episodes):
    `MOTION_WEIGHT` times the squared error of the motion [B, 4] in units of its bounds, plus the cross-entropy of the
    command logits [B, 4]."""
    motion = F.mse_loss(mean, action[:, :4] / bound, reduction="none").sum(dim=1)
    command = F.cross_entropy(command_logits, action[:, 4].long(), reduction="none")
    return weighted_mean(MOTION_WEIGHT * motion + command, weight)


def landmark_loss(predicted: Tensor, landmark: Tensor) -> Tensor:
    """Auxiliary state prediction (James et al. 2017, arXiv:1707.02267, sec. 3.3): squared error of landmarks [B, L, 6],
    summed over the landmarks of an image and averaged over images."""
    return (predicted - landmark).square().sum((1, 2)).mean()


def point_loss(logits: Tensor, point: Tensor, visible: Tensor) -> Tensor:
    """Cross-entropy between attention logits [B, P, M, M] and image points [B, P, 2] (right and down, in units of the
    image's side), each spread bilinearly over the four nearest cells. Summed over the visible points [B, P], averaged
    over images."""
    size = logits.shape[-1]
    cell = (point * size - 0.5).clamp(0, size - 1)
    low = cell.floor().clamp(max=size - 2)
    fraction = cell - low
    log_probability = logits.flatten(2).log_softmax(-1)
    corner = (low[..., 1] * size + low[..., 0]).long()
    each = torch.zeros_like(point[..., 0])
    for right in (0, 1):
        for down in (0, 1):
            x = fraction[..., 0] if right else 1 - fraction[..., 0]
            y = fraction[..., 1] if down else 1 - fraction[..., 1]
            cell = log_probability.gather(-1, (corner + down * size + right)[..., None])[..., 0]
            each = each - x * y * cell
    return (each * visible).sum(-1).mean()


def calibration_error(q: Tensor, outcome: Tensor, bins: int = 5) -> Tensor:
    """Expected calibration error (arXiv:1706.04599, eq. 3) of Q-values in [0, 1] against outcomes, both [B]: the
    difference of their means in each of equal bins of Q, weighted by the number of transitions in the bin."""
    bin_one_hot = one_hot((bins * q).long().clamp(max=bins - 1), bins).to(q.dtype)
    return (bin_one_hot.T @ (q - outcome)).abs().sum() / len(q)
