"""What the Q-networks share: how they are configured, conditioned on the task, and asked for Q.

Both run the image trunk once per state (`encode`) and score any number of candidate actions on its features (`score`).
Shapes: `B` states, `K` candidate actions per state, `N` tasks, `V` action and gripper vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sim.actions import BOUNDS, MAX_TRANSLATION_M, TERMINATE
from sim.image_sizes import check_size
from sim.options import check_choice

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
        check_choice("conditioning", self.conditioning, CONDITIONINGS)
        check_size(self.image_size)


def action_features(action: Tensor) -> Tensor:
    """Actions [..., 5] (sim/actions.py) as the network's vector [..., 8].

    With terminate the motion is left out: it no longer decides anything, but a scripted policy stays where it is when
    it knows that it holds the thing, so Q would read success off the motion instead of the image."""
    command = action[..., 4:5]
    motion = action[..., :4] * (command != TERMINATE)
    translation, yaw = motion[..., :3] / MAX_TRANSLATION_M, motion[..., 3:]
    commands = command == torch.arange(1, 4, device=action.device)
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
        """Images float [B, 3, H, W] in [0, 1] and gripper readings [B, 2] (closed, height in m) -> features of each
        state: a map [B, 64, M, M] of QT-Opt's network, [B, L * (5 + D)] of the small one."""
        raise NotImplementedError

    def score(self, features: Tensor, gripper: Tensor, action: Tensor, task_index: Tensor) -> Tensor:
        """Features of B states, gripper [B, 2], actions [B, K, 5], tasks [B] -> Q logits [B, K]."""
        return self.judge(self.combine(features, gripper, action, task_index), task_index)

    def score_tasks(self, features: Tensor, gripper: Tensor, action: Tensor, tasks: Tensor) -> Tensor:
        """Features of B states, gripper [B, 2], actions [B, 5] -> Q logits [B, N] for each of the tasks [N]."""
        return self.judge(self.combine_tasks(features, gripper, action, tasks), tasks).T

    def combine(self, features: Tensor, gripper: Tensor, action: Tensor, task_index: Tensor) -> Tensor:
        """What the heads see of states and actions, [B, K, F]; arguments as in `score`."""
        raise NotImplementedError

    def combine_tasks(self, features: Tensor, gripper: Tensor, action: Tensor, tasks: Tensor) -> Tensor:
        """The same by task, [N, B, F]; arguments as in `score_tasks`."""
        state, reading, act = (torch.cat([rows] * len(tasks)) for rows in (features, gripper, action[:, None]))
        x = self.combine(state, reading, act, tasks.repeat_interleave(len(action)))
        return x.view(len(tasks), len(action), -1)

    def judge(self, x: Tensor, task_index: Tensor) -> Tensor:
        """The heads: [B, K, F], tasks [B] -> Q logits [B, K]. States may stand for candidates, tasks for states."""
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


def bounds(device: torch.device) -> Tensor:
    """Bounds [4] of the continuous part of an action (m, m, m, rad)."""
    return torch.from_numpy(BOUNDS).to(device)
