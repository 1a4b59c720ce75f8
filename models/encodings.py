"""Encodings of indices."""

from __future__ import annotations

import torch
from torch import Tensor


def one_hot(index: Tensor, count: int) -> Tensor:
    """Indices int64 [...] -> float32 [..., count]. That of torch.nn.functional reads the values on the host, and takes
    longer."""
    return (index[..., None] == torch.arange(count, device=index.device)).float()
