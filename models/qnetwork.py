"""Common base of the Q-networks: configuration, task conditioning, and the interface that scores actions.

Both run the image trunk once per state (`encode`) and score any number of candidate actions on its features (`score`).
Shapes: `B` states, `K` candidate actions per state, `N` tasks, `V` action and gripper vector.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.encodings import one_hot
from sim.actions import BOUNDS, MAX_TRANSLATION_M, TERMINATE
from sim.image_sizes import check_size
from sim.landmarks import LANDMARK_SIZE
from sim.options import check_choice, check_least

HEIGHT_SCALE_M = 0.2  # the gripper's height enters the network in units of this
ACTION_FEATURES = 8  # translation 3, yaw sin and cos, close, open, terminate
GRIPPER_FEATURES = 2  # closed, height
CONDITIONINGS = ("heads", "one_hot")
ATTENTION_STRIDES = (2, 4)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """`image_size` decides the network: QT-Opt's from 220 px, the small one from 48 to 128 px."""

    image_size: int
    num_tasks: int
    conditioning: str = "heads"
    behaviour_policy: bool = False  # a behaviour-cloned head on the features (not in the paper)
    landmark_size: int = LANDMARK_SIZE  # numbers per landmark of the small network
    attention_stride: int = 4  # px per cell of its attention maps

    def __post_init__(self) -> None:
        check_choice("conditioning", self.conditioning, CONDITIONINGS)
        check_size(self.image_size)
        check_least(self, 1, "landmark_size")
        if self.attention_stride not in ATTENTION_STRIDES:
            raise ValueError(f"attention maps have cells of 2 or 4 px, got {self.attention_stride}")


def action_features(action: Tensor) -> Tensor:
    """Input features [..., 8] of actions [..., 5] (sim/actions.py).

    The motion of a *terminate* action is masked: it has no effect, but scripted policies stay still when they hold the
    object and move when they do not, so Q would read success off the motion instead of the image (a shortcut)."""
    command = action[..., 4:5]
    motion = action[..., :4] * (command != TERMINATE)
    translation, yaw = motion[..., :3] / MAX_TRANSLATION_M, motion[..., 3:]
    commands = command == torch.arange(1, 4, device=action.device)
    return torch.cat([translation, yaw.sin(), yaw.cos(), commands.to(action.dtype)], dim=-1)


class TaskLinear(nn.Module):
    """One linear layer per task: [B, K, in], task indices [B] -> [B, K, out].

    Weights are looked up as embeddings, whose gradient is deterministic on several threads; that of indexing is not."""

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
    """Q-network with a vector branch and a head per task; Q is a logit, its sigmoid the Q-value in [0, 1]."""

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
        """Image features, once per state: images float [B, 3, H, W] in [0, 1] and gripper readings [B, 2] (closed,
        height in m) -> a map [B, 64, M, M] (QT-Opt's network) or [B, L * (S + D)] (the small one)."""
        raise NotImplementedError

    def score(self, features: Tensor, gripper: Tensor, action: Tensor, task_index: Tensor) -> Tensor:
        """Q logits [B, K] of K actions per state [B, K, 5]: features of B states, gripper [B, 2], tasks [B]."""
        return self.heads(self.combine(features, gripper, action, task_index), task_index)

    def score_tasks(self, features: Tensor, gripper: Tensor, action: Tensor, tasks: Tensor) -> Tensor:
        """Q logits [B, N] of one action per state [B, 5] for each of the tasks [N]: features, gripper [B, 2]."""
        return self.heads(self.combine_tasks(features, gripper, action, tasks), tasks).T

    def combine(self, features: Tensor, gripper: Tensor, action: Tensor, task_index: Tensor) -> Tensor:
        """Features of state-action pairs, the input of the heads [B, K, F]; arguments as in `score`."""
        raise NotImplementedError

    def combine_tasks(self, features: Tensor, gripper: Tensor, action: Tensor, tasks: Tensor) -> Tensor:
        """The same for each task, [N, B, F]; arguments as in `score_tasks`."""
        state, reading, act = (torch.cat([rows] * len(tasks)) for rows in (features, gripper, action[:, None]))
        x = self.combine(state, reading, act, tasks.repeat_interleave(len(action)))
        return x.view(len(tasks), len(action), -1)

    def heads(self, x: Tensor, task_index: Tensor) -> Tensor:
        """Q logits [B, K] from features [B, K, F] by the heads of tasks [B]; or [N, B] from [N, B, F] and tasks [N]."""
        raise NotImplementedError

    def forward(self, image: Tensor, gripper: Tensor, action: Tensor, task_index: Tensor) -> Tensor:
        """Q logits [B] of one action per state [B, 5]."""
        return self.score(self.encode(image, gripper), gripper, action[:, None], task_index)[:, 0]

    def _state(self, gripper: Tensor, task_index: Tensor) -> Tensor:
        """Gripper reading, with the task's one-hot vector where `conditioning` is one_hot: [B, V - 8]"""
        parts = [gripper[:, :1], gripper[:, 1:] / HEIGHT_SCALE_M]
        if self.config.conditioning == "one_hot":
            parts.append(one_hot(task_index, self.config.num_tasks).to(gripper.dtype))
        return torch.cat(parts, dim=-1)

    def _vector(self, gripper: Tensor, action: Tensor, task_index: Tensor) -> Tensor:
        """Input of the vector branch: action, gripper and task, [B, K, V]"""
        state = self._state(gripper, task_index)
        return torch.cat([action_features(action), state[:, None].expand(-1, action.shape[1], -1)], dim=-1)


@functools.cache
def bounds(device: torch.device) -> Tensor:
    """Bounds [4] of the continuous part of an action (m, m, m, rad)."""
    return torch.from_numpy(BOUNDS).to(device)
