"""The small Q-network for 48-128 px, which localises landmarks by spatial attention. Shapes as in models/qnetwork.py;
`L` landmarks of `S` numbers and `P` image points (sim/landmarks.py), each with a descriptor of `D` numbers; maps are of
side `M`."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.norm import BatchNorm, Blocks
from models.old_names import rename_weights
from models.qnetwork import ACTION_FEATURES, GRIPPER_FEATURES, HEIGHT_SCALE_M, NetworkConfig, QNetwork, TaskLinear
from sim.landmarks import LANDMARKS, OWN_LANDMARK, POINTS


def _small_block(inputs: int, outputs: int, size: int, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return conv, BatchNorm(outputs), nn.ReLU(inplace=True)


class _Residual(nn.Module):
    """Residual block of two convolutions (arXiv:1512.03385, fig. 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.inner = Blocks(*_small_block(channels, channels, 3, 1), conv, BatchNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.inner(x))


class _Pyramid(nn.Module):
    """Feature pyramid (arXiv:1612.03144): [B, 3, H, H] -> [B, C, H / stride, H / stride]. Maps at 1/2 to 1/16 of the
    image's side; the coarse ones, whose receptive field holds the whole arm, are added to the finer ones up to 1/2, C =
    24, or 1/4, C = 48."""

    channels = (24, 48, 64, 96)

    def __init__(self, stride: int) -> None:
        super().__init__()
        first, *rest = self.channels
        levels = self.channels if stride == 2 else tuple(rest)
        self.out_channels = levels[0]
        second = _small_block(first, first, 3, 1) if stride == 2 else ()
        self.stem = Blocks(*_small_block(3, first, 5, 2), *second)
        before = self.channels[:-1]
        self.down = nn.ModuleList(
            Blocks(*_small_block(i, o, 3, 2), _Residual(o)) for i, o in zip(before, rest, strict=True)
        )
        self.up = nn.ModuleList(nn.Conv2d(o, i, 1) for i, o in itertools.pairwise(levels))
        self.fuse = nn.ModuleList(Blocks(*_small_block(c, c, 3, 1)) for c in levels[:-1])

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        maps = [x, *(x := down(x) for down in self.down)]
        x = maps.pop()
        for up, fuse in zip(reversed(self.up), reversed(self.fuse), strict=True):
            finer = maps.pop()
            x = fuse(finer + F.interpolate(up(x), size=finer.shape[-2:]))
        return x


class Perception(NamedTuple):
    """Output of the image branch: `attention` logits [B, P, M, M] over the map, one per image point; predicted
    `landmark` [B, L, S] (sim/landmarks.py); `features` [B, L * (S + D)], each landmark and its descriptor, the input of
    `score` and `behaviour_policy`."""

    attention: Tensor
    landmark: Tensor
    features: Tensor


class SmallQNetwork(QNetwork):
    """QT-Opt's plan for 48-128 px: convolutions, the vector branch added to the features, a head per task.

    Spatial attention (the soft argmax of arXiv:1504.00702) gives points of the image and a descriptor of each; one
    small network, shared by all points, predicts a landmark from each: the object's position relative to the gripper.
    A task attends to the landmarks (`_task_landmark`), at first mostly to that of its own object. All layers but the
    heads are shared, so that grasping one object teaches grasping another. The map is reduced to landmarks before the
    action is merged, so a candidate costs 0.1 M multiply-adds and CEM stays cheap.
    """

    descriptor, hidden, width = 32, 128, 256
    attention_scale = 5.0  # of the logits of the softmax over landmarks: how fast it becomes sharp
    own_attention = 0.5  # initial logit of a task's own landmark: more than half of the softmax

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config, self.width, 64)
        hidden, width = self.hidden, self.width
        self.trunk = _Pyramid(config.attention_stride)
        channels = self.trunk.out_channels
        self.attend = nn.Conv2d(channels, POINTS, 1)
        self.describe = nn.Conv2d(channels, self.descriptor, 1)
        self.point1 = nn.Linear(2 + self.descriptor, hidden, bias=False)
        self.tip1 = nn.Linear(2 + self.descriptor + GRIPPER_FEATURES, hidden, bias=False)
        self.landmark_bias1 = nn.Parameter(0.3 * torch.randn(LANDMARKS, hidden))
        self.point2 = nn.Linear(hidden, hidden)
        self.point3 = nn.Linear(hidden, config.landmark_size)
        landmark_features = config.landmark_size + self.descriptor
        own = torch.tensor(OWN_LANDMARK[: config.num_tasks])
        self.task_attention = nn.Parameter(self.own_attention * F.one_hot(own, LANDMARKS).float())
        self.merge1 = nn.Linear(self.vector_size, 128)
        self.merge2 = nn.Linear(128, width)
        self.merge_landmarks = nn.Linear(LANDMARKS * landmark_features, width)
        self.merge_task_landmark = nn.Linear(landmark_features, width)
        self.after_merge = nn.Linear(width, width)
        if config.behaviour_policy:
            self.policy1 = nn.Linear(config.landmark_size + self.vector_size - ACTION_FEATURES, hidden)
            self.policy2 = nn.Linear(hidden, hidden)
            self.policy3 = TaskLinear(self.num_heads, hidden, 8)
        self.register_load_state_dict_pre_hook(rename_weights)

    @property
    def q_layers(self) -> list[nn.Module]:
        """The layers that only Q uses: all but perception and behaviour policy."""
        merges = [self.merge1, self.merge2, self.merge_landmarks, self.merge_task_landmark, self.after_merge]
        return [*merges, self.head1, self.head2, self.head3]

    @staticmethod
    def sees(key: str) -> bool:
        """Whether a weight of this name belongs to perception: what `perceive` uses."""
        return key.split(".")[0] in (
            "trunk",
            "attend",
            "describe",
            "point1",
            "tip1",
            "landmark_bias1",
            "point2",
            "point3",
        )

    def encode(self, image: Tensor, gripper: Tensor) -> Tensor:
        return self.perceive(image, gripper).features

    def perceive(self, image: Tensor, gripper: Tensor) -> Perception:
        """Attention, landmarks and features of images [B, 3, H, W] and gripper readings [B, 2]."""
        x = self.trunk((image - 0.5) * 4)
        attention = self.attend(x)
        weight = attention.flatten(2).softmax(-1)  # [B, P, M * M]
        descriptor = weight @ self.describe(x).flatten(2).transpose(1, 2)  # [B, P, D]
        point = torch.cat([3 * (weight @ _cell_centres(x.shape[-1], x.device)), descriptor], dim=-1)
        reading = torch.stack([gripper[:, 0], gripper[:, 1] / HEIGHT_SCALE_M * 2 - 1], dim=1)
        tip = self.tip1(torch.cat([point[:, -1], reading], dim=-1))
        hidden = F.relu(self.point1(point[:, :-1]) + tip[:, None] + self.landmark_bias1)
        landmark = self.point3(F.relu(self.point2(hidden)))  # [B, L, S]
        return Perception(attention, landmark, torch.cat([landmark, descriptor[:, :-1]], dim=-1).flatten(1))

    def combine(self, features: Tensor, gripper: Tensor, action: Tensor, task_index: Tensor) -> Tensor:
        vector = self.merge2(F.relu(self.merge1(self._vector(gripper, action, task_index))))
        state = self.merge_landmarks(features) + self.merge_task_landmark(self._task_landmark(features, task_index))
        return F.relu(self.after_merge(F.relu(state[:, None] + vector)))

    def heads(self, x: Tensor, task_index: Tensor) -> Tensor:
        x = F.relu(self.head1(x, task_index))
        x = F.relu(self.head2(x, task_index))
        return self.head3(x, task_index)[..., 0]

    def behaviour_policy(self, features: Tensor, gripper: Tensor, task_index: Tensor) -> tuple[Tensor, Tensor]:
        """Behaviour-cloned policy pi_b: mean [B, 4] of the motion in units of its bounds, command logits [B, 4].

        It sees the task's landmark and the gripper only: with all features it would memorise the episodes."""
        landmark = self._task_landmark(features, task_index)[:, : self.config.landmark_size]
        x = F.relu(self.policy1(torch.cat([landmark, self._state(gripper, task_index)], dim=-1)))
        x = self.policy3(F.relu(self.policy2(x))[:, None], task_index)[:, 0]
        return x[:, :4], x[:, 4:]

    def _task_landmark(self, features: Tensor, task_index: Tensor) -> Tensor:
        """The landmark a task attends to, with its descriptor: mean weighted by the task's attention [B, S + D]."""
        weight = F.embedding(task_index, (self.attention_scale * self.task_attention).softmax(-1))  # [B, L]
        return (weight[:, None] @ features.unflatten(1, (LANDMARKS, -1)))[:, 0]


def _cell_centres(size: int, device: torch.device) -> Tensor:
    """Centres of the cells of a square map, x right and y down, in [-1, 1]: [size * size, 2]"""
    coordinate = (torch.arange(size, device=device) + 0.5) / size * 2 - 1
    return torch.stack([coordinate.repeat(size), coordinate.repeat_interleave(size)], dim=1)
