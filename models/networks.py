"""Builds the Q-network for an image size (QT-Opt's from 220 px, a small one for 48-128 px)."""

from __future__ import annotations

import torch

from models.qnetwork import NetworkConfig
from models.qtopt_network import QTOptNetwork
from models.small_network import SmallQNetwork
from sim.image_sizes import QTOPT_FROM_PX


def build_network(config: NetworkConfig) -> QTOptNetwork | SmallQNetwork:
    network = QTOptNetwork(config) if config.image_size >= QTOPT_FROM_PX else SmallQNetwork(config)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
