"""Builds the Q-network for an image size (QT-Opt's from 220 px, a small one for 48-128 px); averages its weights."""

from __future__ import annotations

import torch
from torch import Tensor

from models.qnetwork import NetworkConfig, QNetwork
from models.qtopt_network import QTOptNetwork
from models.small_network import SmallQNetwork
from sim.image_sizes import QTOPT_FROM_PX


def build_network(config: NetworkConfig) -> QTOptNetwork | SmallQNetwork:
    network = QTOptNetwork(config) if config.image_size >= QTOPT_FROM_PX else SmallQNetwork(config)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


@torch.no_grad()
def update_average(target: QNetwork, network: QNetwork, rate: float) -> None:
    """Running average of the weights: target <- target + rate * (network - target). Buffers are copied."""
    averages: list[Tensor] = list(target.parameters())
    weights: list[Tensor] = list(network.parameters())
    torch._foreach_lerp_(averages, weights, rate)
    for old, current in zip(target.buffers(), network.buffers(), strict=True):
        old.copy_(current)
