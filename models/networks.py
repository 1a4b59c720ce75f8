"""Q-networks over images: QT-Opt's at 472 px and a small sibling for 48-128 px, multi-headed or one-hot conditioned.

Both run the image trunk once per state (`encode`) and score any number of candidate actions on its features (`score`).
Shapes: `B` states, `K` candidate actions per state, `N` tasks, `V` action and gripper vector.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.norm import BatchNorm
from sim.actions import BOUNDS, MAX_TRANSLATION_M
from sim.landmarks import LANDMARK_SIZE, LANDMARKS, POINTS
from sim.options import choose
from sim.views import QTOPT_FROM_PX, check_size

HEIGHT_SCALE_M = 0.2  # the gripper's height enters the network in units of this
ACTION_FEATURES = 8  # translation 3, yaw sin and cos, close, open, terminate
GRIPPER_FEATURES = 2  # closed, height
CONDITIONINGS = ("heads", "one_hot")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """`image_size` decides the network: QT-Opt's from 220 px, the small one from 48 to 128 px."""

    image_size: int
    num_tasks: int
    conditioning: str = "heads"
    prior: bool = False  # a behaviour-cloning head on the features (off in the paper)

    def __post_init__(self) -> None:
        choose("conditioning", self.conditioning, CONDITIONINGS)
        check_size(self.image_size)


def action_features(action: Tensor) -> Tensor:
    """Actions [..., 5] (sim/actions.py) as the network's vector [..., 8]."""
    translation = action[..., :3] / MAX_TRANSLATION_M
    yaw = action[..., 3:4]
    commands = action[..., 4:5] == torch.arange(1, 4, device=action.device)
    return torch.cat([translation, yaw.sin(), yaw.cos(), commands.to(action.dtype)], dim=-1)


class TaskLinear(nn.Module):
    """One linear layer per head; each state goes through that of its task: [B, K, in], [B] -> [B, K, out].

    The weights are looked up as embeddings are: the gradient of indexing adds up in any order on several threads."""

    def __init__(self, num_heads: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = in_features**-0.5
        self.weight = nn.Parameter(torch.empty(num_heads, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(num_heads, out_features))

    def forward(self, x: Tensor, task_index: Tensor) -> Tensor:
        if len(self.weight) == 1:
            return x @ self.weight[0] + self.bias[0]
        weight = F.embedding(task_index, self.weight.flatten(1)).unflatten(1, self.weight.shape[1:])
        return torch.baddbmm(F.embedding(task_index, self.bias)[:, None], x, weight)


class QNetwork(nn.Module):
    """What both networks share: the vector branch's inputs, the heads, and Q as a logit (sigmoid gives [0, 1])."""

    def __init__(self, config: NetworkConfig, features: int, hidden: int) -> None:
        super().__init__()
        self.config = config
        one_hot = config.conditioning == "one_hot"
        self.vector_size = ACTION_FEATURES + GRIPPER_FEATURES + (config.num_tasks if one_hot else 0)
        heads = self.num_heads = 1 if one_hot else config.num_tasks
        self.head1 = TaskLinear(heads, features, hidden)
        self.head2 = TaskLinear(heads, hidden, hidden)
        self.head3 = TaskLinear(heads, hidden, 1)

    def encode(self, image: Tensor, gripper: Tensor) -> Tensor:
        """Images float [B, 3, H, W] in [0, 1] and gripper readings [B, 2] -> features, computed once per state."""
        raise NotImplementedError

    def score(self, features: Tensor, gripper: Tensor, action: Tensor, task_index: Tensor) -> Tensor:
        """Features of B states, gripper [B, 2], actions [B, K, 5], tasks [B] -> Q logits [B, K]."""
        raise NotImplementedError

    def forward(self, image: Tensor, gripper: Tensor, action: Tensor, task_index: Tensor) -> Tensor:
        """One action per state: action [B, 5] -> Q logits [B]."""
        return self.score(self.encode(image, gripper), gripper, action[:, None], task_index)[:, 0]

    def _state(self, gripper: Tensor, task_index: Tensor) -> Tensor:
        """Gripper, and the task where it conditions here: [B, V - 8]"""
        parts = [gripper[:, :1], gripper[:, 1:] / HEIGHT_SCALE_M]
        if self.config.conditioning == "one_hot":
            parts.append(F.one_hot(task_index, self.config.num_tasks).to(gripper.dtype))
        return torch.cat(parts, dim=-1)

    def _vector(self, gripper: Tensor, action: Tensor, task_index: Tensor) -> Tensor:
        """[B, K, V]"""
        state = self._state(gripper, task_index)
        return torch.cat([action_features(action), state[:, None].expand(-1, action.shape[1], -1)], dim=-1)


def _batch_norm(channels: int) -> nn.Module:
    norm = BatchNorm(channels, eps=1e-3, momentum=1 - 0.9997)
    norm.weight.requires_grad_(False)  # a shift but no scale, as in QT-Opt
    return norm


def _conv_block(inputs: int, size: int, padding: int | str, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, 64, size, stride, padding, bias=False)
    return nn.Sequential(conv, _batch_norm(64), nn.ReLU(inplace=True))


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
            _conv_block(3, 6, 2, stride=2),
            nn.MaxPool2d(3, 3, ceil_mode=True),
            *(_conv_block(64, 5, 2) for _ in range(6)),
            nn.MaxPool2d(3, 3, padding=1),
        )
        self.merge1 = nn.Linear(self.vector_size, 256, bias=False)
        self.merge_norm1 = _batch_norm(256)
        self.merge2 = nn.Linear(256, 64, bias=False)
        self.merge_norm2 = _batch_norm(64)
        self.join = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.join_norm = _batch_norm(64)
        self.after_merge = nn.Sequential(
            *(_conv_block(64, 3, 1) for _ in range(5)),
            nn.MaxPool2d(2, 2, ceil_mode=True),
            *(_conv_block(64, 3, 0) for _ in range(3)),
        )
        self.head_norm1 = _batch_norm(64)
        self.head_norm2 = _batch_norm(64)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.01, a=-0.02, b=0.02)

    def encode(self, image: Tensor, gripper: Tensor) -> Tensor:
        return self.trunk(image)  # the gripper is merged later, with the action

    def score(self, features: Tensor, gripper: Tensor, action: Tensor, task_index: Tensor) -> Tensor:
        size, candidates = action.shape[:2]
        vector = self._vector(gripper, action, task_index).flatten(0, 1)
        vector = F.relu(self.merge_norm1(self.merge1(vector)))
        vector = F.relu(self.merge_norm2(self.merge2(vector)))
        vector = vector.view(size, candidates, 64)
        prepared = self._prepare(features)
        pieces = []
        step = candidates if self.training else max(1, self.max_states_at_once // size)
        for begin in range(0, candidates, step):
            x = F.relu(self.join_norm(self._merge(prepared, vector[:, begin : begin + step])))
            pieces.append(self.after_merge(x).flatten(1))
        x = torch.cat(pieces) if len(pieces) == 1 else _interleave(pieces, size)
        x = x.view(size, candidates, -1)
        x = F.relu(self.head_norm1(self.head1(x, task_index).flatten(0, 1))).view(size, candidates, -1)
        x = F.relu(self.head_norm2(self.head2(x, task_index).flatten(0, 1))).view(size, candidates, -1)
        return self.head3(x, task_index)[..., 0]

    def _prepare(self, features: Tensor) -> Tensor:
        """What `_merge` takes of each state, whatever the candidates."""
        return self.join(features)

    def _merge(self, joined: Tensor, vector: Tensor) -> Tensor:
        """conv8 of a map with a vector [B, K, 64] added all over it -> [B * K, 64, M, M]. It is conv8 of the map, once
        per state, plus conv8 of the vector, which is the same everywhere but at the border: 3 x 3 places tell all."""
        size, side = vector.shape[1], joined.shape[-1]
        everywhere = vector.flatten(0, 1)[..., None, None].expand(-1, -1, 3, 3)
        told = F.conv2d(everywhere, self.join.weight, padding=1).flatten(2).transpose(1, 2)  # [B * K, 9, 64]
        rows = _stretch(told.unflatten(1, (3, 3)), 1, side)
        x = _stretch(rows, 2, side).flatten(1, 2).unflatten(0, (-1, size))  # [B, K, M * M, 64]
        x = x + joined.flatten(2).transpose(1, 2)[:, None]
        return x.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))  # channels last


def _stretch(x: Tensor, dim: int, side: int) -> Tensor:
    """From first, middle and last along a dimension to `side` places, all but the first and last the middle."""
    first, middle, last = x.split(1, dim)
    shape = [-1] * x.dim()
    shape[dim] = side - 2
    return torch.cat([first, middle.expand(shape), last], dim)


def _interleave(pieces: list[Tensor], size: int) -> Tensor:
    return torch.cat([piece.view(size, -1, piece.shape[-1]) for piece in pieces], dim=1).flatten(0, 1)


def _small_block(inputs: int, outputs: int, size: int, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return conv, BatchNorm(outputs), nn.ReLU(inplace=True)


class _Residual(nn.Module):
    """Two convolutions around which their input goes (arXiv:1512.03385, fig. 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.inner = nn.Sequential(*_small_block(channels, channels, 3, 1), conv, BatchNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.inner(x))


class _Pyramid(nn.Module):
    """Maps of a half, a quarter, an eighth and a sixteenth of the image's side; the coarse ones, which see the whole
    arm, are added to the finer ones down to a quarter, as in arXiv:1612.03144. [B, 3, H, H] -> [B, 48, H / 4, H / 4]"""

    channels = (24, 48, 64, 96)
    out_channels = channels[1]

    def __init__(self) -> None:
        super().__init__()
        first, *rest = self.channels
        self.stem = nn.Sequential(*_small_block(3, first, 5, 2))
        before = self.channels[:-1]
        self.down = nn.ModuleList(
            nn.Sequential(*_small_block(i, o, 3, 2), _Residual(o)) for i, o in zip(before, rest, strict=True)
        )
        self.up = nn.ModuleList(nn.Conv2d(o, i, 1) for i, o in itertools.pairwise(rest))
        self.fuse = nn.ModuleList(nn.Sequential(*_small_block(c, c, 3, 1)) for c in rest[:-1])

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        maps = [x := down(x) for down in self.down]
        x = maps.pop()
        for up, fuse in zip(reversed(self.up), reversed(self.fuse), strict=True):
            finer = maps.pop()
            x = fuse(finer + F.interpolate(up(x), size=finer.shape[-2:]))
        return x


class Sight(NamedTuple):
    """What the small network makes of a picture: `attention` logits [B, P, M, M] over the map, one per image point;
    `landmark` [B, L, 5] of sim/landmarks.py; `features` [B, W] for `score` and `propose`."""

    attention: Tensor
    landmark: Tensor
    features: Tensor


class SmallQNetwork(QNetwork):
    """The same plan for 48-128 px: convolutions, the vector branch added to the features, a head per task.

    Spatial attention (the soft argmax of arXiv:1504.00702) gives points of the image and a description of each; one
    small network, shared by all points, makes of each a landmark: where the thing is, seen from the gripper. Each task
    learns which of them it is about (`_focus`); what comes after is shared but for the last layers, so that grasping
    one thing teaches grasping another. The map is gone before the action is merged, so a candidate costs 0.1 M
    multiply-adds and CEM stays cheap.
    """

    description, hidden, width = 32, 128, 256
    focus_scale = 5.0  # of what the softmax over landmarks sees: so fast it becomes sharp

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config, self.width, 64)
        hidden, width = self.hidden, self.width
        self.trunk = _Pyramid()
        channels = self.trunk.out_channels
        self.attend = nn.Conv2d(channels, POINTS, 1)
        self.describe = nn.Conv2d(channels, self.description, 1)
        self.point1 = nn.Linear(2 + self.description, hidden, bias=False)
        self.tip1 = nn.Linear(2 + self.description + GRIPPER_FEATURES, hidden, bias=False)
        self.which1 = nn.Parameter(0.3 * torch.randn(LANDMARKS, hidden))
        self.point2 = nn.Linear(hidden, hidden)
        self.point3 = nn.Linear(hidden, LANDMARK_SIZE)
        thing = LANDMARK_SIZE + self.description
        self.focus = nn.Parameter(torch.zeros(config.num_tasks, LANDMARKS))
        self.merge1 = nn.Linear(self.vector_size, 128)
        self.merge2 = nn.Linear(128, width)
        self.merge_things = nn.Linear(LANDMARKS * thing, width)
        self.merge_focus = nn.Linear(thing, width)
        self.after_merge = nn.Linear(width, width)
        if config.prior:
            self.prior1 = nn.Linear(LANDMARK_SIZE + self.vector_size - ACTION_FEATURES, hidden)
            self.prior2 = nn.Linear(hidden, hidden)
            self.prior3 = TaskLinear(self.num_heads, hidden, 8)

    def encode(self, image: Tensor, gripper: Tensor) -> Tensor:
        return self.look(image, gripper).features

    def look(self, image: Tensor, gripper: Tensor) -> Sight:
        x = self.trunk((image - 0.5) * 4)
        attention = self.attend(x)
        share = attention.flatten(2).softmax(-1)  # [B, P, M * M]
        description = share @ self.describe(x).flatten(2).transpose(1, 2)  # [B, P, D]
        point = torch.cat([3 * (share @ _map_places(x.shape[-1], x.device)), description], dim=-1)
        reading = torch.stack([gripper[:, 0], gripper[:, 1] / HEIGHT_SCALE_M * 2 - 1], dim=1)
        tip = self.tip1(torch.cat([point[:, -1], reading], dim=-1))
        seen = F.relu(self.point1(point[:, :-1]) + tip[:, None] + self.which1)
        landmark = self.point3(F.relu(self.point2(seen)))  # [B, L, 5]
        return Sight(attention, landmark, torch.cat([landmark, description[:, :-1]], dim=-1).flatten(1))

    def score(self, features: Tensor, gripper: Tensor, action: Tensor, task_index: Tensor) -> Tensor:
        vector = self.merge2(F.relu(self.merge1(self._vector(gripper, action, task_index))))
        seen = self.merge_things(features) + self.merge_focus(self._focus(features, task_index))
        x = F.relu(self.after_merge(F.relu(seen[:, None] + vector)))
        x = F.relu(self.head1(x, task_index))
        x = F.relu(self.head2(x, task_index))
        return self.head3(x, task_index)[..., 0]

    def propose(self, features: Tensor, gripper: Tensor, task_index: Tensor) -> tuple[Tensor, Tensor]:
        """The cloned policy: mean [B, 4] of the motion in units of its bounds, logits [B, 4] of the command.

        It knows where the task's thing is and no more: from all that is seen it would learn episodes by heart."""
        landmark = self._focus(features, task_index)[:, :LANDMARK_SIZE]
        x = F.relu(self.prior1(torch.cat([landmark, self._state(gripper, task_index)], dim=-1)))
        x = self.prior3(F.relu(self.prior2(x))[:, None], task_index)[:, 0]
        return x[:, :4], x[:, 4:]

    def _focus(self, features: Tensor, task_index: Tensor) -> Tensor:
        """The landmark that the task is about, with its description: [B, 5 + D], a mean weighted by the task."""
        share = F.embedding(task_index, (self.focus_scale * self.focus).softmax(-1))  # [B, L]
        return (share[:, None] @ features.unflatten(1, (LANDMARKS, -1)))[:, 0]


def _map_places(size: int, device: torch.device) -> Tensor:
    """Centres of the cells of a square map, right and down, in [-1, 1]: [size * size, 2]"""
    place = (torch.arange(size, device=device) + 0.5) / size * 2 - 1
    return torch.stack([place.repeat(size), place.repeat_interleave(size)], dim=1)


def build_network(config: NetworkConfig) -> QTOptNetwork | SmallQNetwork:
    network = QTOptNetwork(config) if config.image_size >= QTOPT_FROM_PX else SmallQNetwork(config)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def bounds(device: torch.device) -> Tensor:
    """Bounds [4] of the continuous part of an action (m, m, m, rad)."""
    return torch.from_numpy(BOUNDS).to(device)
