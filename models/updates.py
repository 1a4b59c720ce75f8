"""Steps of a training: of an optimiser, and of a target network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def gradient_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of the optimiser along the gradient of `loss` []."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """What is computed meanwhile gives the network's weights no gradient."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


@torch.no_grad()
def update_average(target: nn.Module, network: nn.Module, rate: float) -> None:
    """Running average of the weights: target <- target + rate * (network - target). Buffers are copied."""
    averages: list[Tensor] = list(target.parameters())
    weights: list[Tensor] = list(network.parameters())
    torch._foreach_lerp_(averages, weights, rate)
    for old, current in zip(target.buffers(), network.buffers(), strict=True):
        old.copy_(current)
