"""Reductions that losses share."""

from __future__ import annotations

from torch import Tensor


def weighted_mean(each: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over the last dimension: [..., B] with weights that broadcast to it -> [...]."""
    return (weight * each).sum(-1) / weight.sum(-1).clamp(min=1e-6)
