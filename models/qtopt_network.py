"""QT-Opt's Q-network. Shapes as in models/qnetwork.py; maps are of side `M`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.norm import BatchNorm, Blocks, fold
from models.qnetwork import NetworkConfig, QNetwork, TaskLinear


def _batch_norm(channels: int) -> BatchNorm:
    norm = BatchNorm(channels, eps=1e-3, momentum=1 - 0.9997)
    norm.weight.requires_grad_(False)  # a shift but no scale, as in QT-Opt
    return norm


def _conv_block(inputs: int, size: int, padding: int, stride: int = 1, pool: nn.Module | None = None) -> Blocks:
    """Convolution, batch normalisation, pool, ReLU. Pooling first gives the same result and leaves ReLU less to do."""
    conv = nn.Conv2d(inputs, 64, size, stride, padding, bias=False)
    return Blocks(conv, _batch_norm(64), *([pool] if pool else []), nn.ReLU(inplace=True))


class QTOptNetwork(QNetwork):
    """QT-Opt's network ("Grasping44", arXiv:1806.10293): 472 px, 16 convolutions, 1.24 M weights with one head."""

    max_states_at_once = 256  # candidates are scored in pieces of this many maps

    def __init__(self, config: NetworkConfig) -> None:
        map_size = config.image_size // 2  # conv1 (an odd last row is left out)
        for stride in (3, 3, 2):  # the three pools, all of SAME size
            map_size = math.ceil(map_size / stride)
        map_size -= 6  # three VALID 3x3 convolutions
        super().__init__(config, 64 * map_size**2, 64)
        self.trunk = nn.Sequential(
            _conv_block(3, 6, 2, stride=2, pool=nn.MaxPool2d(3, 3, ceil_mode=True)),
            *(_conv_block(64, 5, 2) for _ in range(5)),
            _conv_block(64, 5, 2, pool=nn.MaxPool2d(3, 3, padding=1)),
        )
        self.merge1 = nn.Linear(self.vector_size, 256, bias=False)
        self.merge_norm1 = _batch_norm(256)
        self.merge2 = nn.Linear(256, 64, bias=False)
        self.merge_norm2 = _batch_norm(64)
        self.join = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.join_norm = _batch_norm(64)
        self.after_merge = nn.Sequential(
            *(_conv_block(64, 3, 1) for _ in range(4)),
            _conv_block(64, 3, 1, pool=nn.MaxPool2d(2, 2, ceil_mode=True)),
            *(_conv_block(64, 3, 0) for _ in range(3)),
        )
        self.head_norm1 = _batch_norm(64)
        self.head_norm2 = _batch_norm(64)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear, TaskLinear)):
                nn.init.trunc_normal_(module.weight, std=0.01, a=-0.02, b=0.02)

    def encode(self, image: Tensor, gripper: Tensor) -> Tensor:
        return self.trunk(image)  # the gripper is merged later, with the action

    def combine(self, features: Tensor, gripper: Tensor, action: Tensor, task_index: Tensor) -> Tensor:
        size, candidates = action.shape[:2]
        vector = self._vector(gripper, action, task_index).flatten(0, 1)
        vector = F.relu(self.merge_norm1(self.merge1(vector)))
        vector = F.relu(self.merge_norm2(self.merge2(vector)))
        vector = vector.view(size, candidates, 64)
        prepared = self._prepare(features)
        pieces = []
        step = candidates if self.training else max(1, self.max_states_at_once // size)
        for begin in range(0, candidates, step):
            x = F.relu(self._merge(prepared, vector[:, begin : begin + step]), inplace=True)
            pieces.append(self.after_merge(x).flatten(1))
        x = torch.cat(pieces) if len(pieces) == 1 else _interleave(pieces, size)
        return x.view(size, candidates, -1)

    def combine_tasks(self, features: Tensor, gripper: Tensor, action: Tensor, tasks: Tensor) -> Tensor:
        if self.config.conditioning == "one_hot":
            return super().combine_tasks(features, gripper, action, tasks)
        x = self.combine(features, gripper, action[:, None], tasks)  # which does not depend on the task
        return x.transpose(0, 1).expand(len(tasks), -1, -1)

    def heads(self, x: Tensor, task_index: Tensor) -> Tensor:
        shape = (*x.shape[:2], -1)
        x = F.relu(self.head_norm1(self.head1(x, task_index).flatten(0, 1))).view(shape)
        x = F.relu(self.head_norm2(self.head2(x, task_index).flatten(0, 1))).view(shape)
        return self.head3(x, task_index)[..., 0]

    def _prepare(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Part of `_merge` that does not depend on the candidates: conv8 of the map [B, 64, M, M], and its weight."""
        if not self.join_norm.is_fixed:
            return self.join(features), self.join.weight
        weight, bias = fold(self.join, self.join_norm)
        return F.conv2d(features, weight, bias, padding=1), weight

    def _merge(self, prepared: tuple[Tensor, Tensor], vector: Tensor) -> Tensor:
        """conv8, normalised, of a map with a vector [B, K, 64] added at every place: [B * K, 64, M, M].

        By linearity it is conv8 of the map, once per state, plus conv8 of the constant vector map, which differs only
        at the border: 3 x 3 places determine it."""
        joined, weight = prepared
        size, side = vector.shape[1], joined.shape[-1]
        everywhere = vector.flatten(0, 1)[..., None, None].expand(-1, -1, 3, 3)
        places = F.conv2d(everywhere, weight, padding=1).flatten(2).transpose(1, 2)  # [B * K, 9, 64]
        rows = _stretch(places.unflatten(1, (3, 3)), 1, side)
        x = _stretch(rows, 2, side).flatten(1, 2).unflatten(0, (-1, size))  # [B, K, M * M, 64]
        x = x + joined.flatten(2).transpose(1, 2)[:, None]
        x = x.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))  # channels last
        return x if self.join_norm.is_fixed else self.join_norm(x)


def _stretch(x: Tensor, dim: int, side: int) -> Tensor:
    """Repeat the middle of three entries along a dimension, so that it has `side` of them."""
    first, middle, last = x.split(1, dim)
    shape = [-1] * x.dim()
    shape[dim] = side - 2
    return torch.cat([first, middle.expand(shape), last], dim)


def _interleave(pieces: list[Tensor], size: int) -> Tensor:
    return torch.cat([piece.view(size, -1, piece.shape[-1]) for piece in pieces], dim=1).flatten(0, 1)
