"""The small network for 48-128 px, which points at things. Shapes as in models/qnetwork.py; `L` landmarks and `P` image
points (sim/landmarks.py), each with a description of `D` numbers; maps are of side `M`."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.norm import BatchNorm, Blocks
from models.qnetwork import ACTION_FEATURES, GRIPPER_FEATURES, HEIGHT_SCALE_M, NetworkConfig, QNetwork, TaskLinear
from sim.landmarks import LANDMARK_SIZE, LANDMARKS, OWN_LANDMARK, POINTS


def _small_block(inputs: int, outputs: int, size: int, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return conv, BatchNorm(outputs), nn.ReLU(inplace=True)


class _Residual(nn.Module):
    """Two convolutions around which their input goes (arXiv:1512.03385, fig. 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.inner = Blocks(*_small_block(channels, channels, 3, 1), conv, BatchNorm(channels))

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
        self.stem = Blocks(*_small_block(3, first, 5, 2))
        before = self.channels[:-1]
        self.down = nn.ModuleList(
            Blocks(*_small_block(i, o, 3, 2), _Residual(o)) for i, o in zip(before, rest, strict=True)
        )
        self.up = nn.ModuleList(nn.Conv2d(o, i, 1) for i, o in itertools.pairwise(rest))
        self.fuse = nn.ModuleList(Blocks(*_small_block(c, c, 3, 1)) for c in rest[:-1])

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
    `landmark` [B, L, 5] of sim/landmarks.py; `features` [B, L * (5 + D)] for `score` and `propose`, each
    landmark and its description."""

    attention: Tensor
    landmark: Tensor
    features: Tensor


class SmallQNetwork(QNetwork):
    """The same plan for 48-128 px: convolutions, the vector branch added to the features, a head per task.

    Spatial attention (the soft argmax of arXiv:1504.00702) gives points of the image and a description of each; one
    small network, shared by all points, makes of each a landmark: where the thing is, seen from the gripper. Each task
    begins with its own thing and learns which of them it is about (`_focus`); what comes after is shared but for the
    last layers, so that grasping one thing teaches grasping another. The map is gone before the action is merged, so a
    candidate costs 0.1 M multiply-adds and CEM stays cheap.
    """

    description, hidden, width = 32, 128, 256
    focus_scale = 5.0  # of what the softmax over landmarks sees: so fast it becomes sharp
    own_focus = 0.5  # what a task begins with at its own thing: more than half of the softmax

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
        own = torch.tensor(OWN_LANDMARK[: config.num_tasks])
        self.focus = nn.Parameter(self.own_focus * F.one_hot(own, LANDMARKS).float())
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

    def combine(self, features: Tensor, gripper: Tensor, action: Tensor, task_index: Tensor) -> Tensor:
        vector = self.merge2(F.relu(self.merge1(self._vector(gripper, action, task_index))))
        seen = self.merge_things(features) + self.merge_focus(self._focus(features, task_index))
        return F.relu(self.after_merge(F.relu(seen[:, None] + vector)))

    def judge(self, x: Tensor, task_index: Tensor) -> Tensor:
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
