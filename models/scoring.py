"""Q-values by which sharing rules judge stored actions, beside that of the action for its target task."""

from __future__ import annotations

import torch
from torch import Tensor

from models.qnetwork import QNetwork


def q_of_policy(logits: Tensor) -> Tensor:
    """The mean Q [B] over unseen actions, logits [B, K], each as often as the conservative term's softmax draws it:
    that distribution is the policy of QT-Opt with soft maximisation."""
    return (logits.softmax(1) * logits.sigmoid()).sum(1)


def q_of_tasks(network: QNetwork, features: Tensor, gripper: Tensor, action: Tensor, tasks: tuple[int, ...]) -> Tensor:
    """Q of actions [B, 5] for every task of the network, [B, N]; -inf for those that are not among `tasks`."""
    index = torch.tensor(tasks, device=action.device)
    training = network.training
    network.eval()  # its averages are of what it learns from
    logits = network.score_tasks(features, gripper, action, index)
    network.train(training)
    q = torch.full((len(action), network.config.num_tasks), -torch.inf, dtype=torch.float32, device=action.device)
    return q.index_copy(1, index, logits.float().sigmoid())
