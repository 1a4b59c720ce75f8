"""Tanh-squashed Gaussians as pure functions (SAC, arXiv:1801.01290, app. C).

Shapes: `E` members, `B` states, `K` actions of each, `A` action dimensions.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

Gaussian = tuple[Tensor, Tensor]  # mean and standard deviation before the tanh, [..., A] each


def sample_with_log_prob(gaussian: Gaussian, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reparameterised actions of each state by standard normal `noise` [E, B, K, A], and their log-densities:
    [E, B, K, A], [E, B, K]."""
    mean, std = gaussian
    before = mean[:, :, None] + std[:, :, None] * noise
    normal = -0.5 * noise.square() - std.log()[:, :, None] - 0.5 * math.log(2 * math.pi)
    return before.tanh(), (normal - log_tanh_derivative(before)).sum(-1)


def log_prob(gaussian: Gaussian, action: Tensor) -> Tensor:
    """Log-density of actions [E, B, A] in [-1, 1]: [E, B]."""
    mean, std = gaussian
    before = action.clamp(-1 + 1e-6, 1 - 1e-6).atanh()
    normal = -0.5 * ((before - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
    return (normal - log_tanh_derivative(before)).sum(-1)


def gaussian_kl(p: Gaussian, q: Gaussian) -> Tensor:
    """KL(p || q) of diagonal Gaussians, [...]; the tanh, being invertible, leaves it as it is.

    sum_a log s_q / s_p + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2"""
    (mean, std), (other_mean, other_std) = p, q
    return ((other_std / std).log() + (std**2 + (mean - other_mean) ** 2) / (2 * other_std**2) - 0.5).sum(-1)


def sampled_kl(p: Gaussian, q: Gaussian, noise: Tensor) -> Tensor:
    """KL(p || q) of states estimated by actions of p (BRAC's primal estimate, Wu et al. 2019, arXiv:1911.11361, sec.
    3), reparameterised by standard normal `noise` [E, B, K, A]: [E, B]. The tanh's derivatives cancel.

    1/K sum_k log p(a_k) - log q(a_k), a_k ~ p"""
    (mean, std), (other_mean, other_std) = p, q
    before = mean[:, :, None] + std[:, :, None] * noise
    other_noise = (before - other_mean[:, :, None]) / other_std[:, :, None]
    ratio = (other_std / std).log()[:, :, None] + (other_noise.square() - noise.square()) / 2
    return ratio.sum(-1).mean(-1)


def log_tanh_derivative(before: Tensor) -> Tensor:
    """log d tanh(x) / dx = log(1 - tanh(x)^2), without loss of precision where tanh is near 1."""
    return 2 * (math.log(2) - before - F.softplus(-2 * before))
