"""Q-values that sharing rules need beside Q(s, a, i): of the policy's actions, and of every task."""

from __future__ import annotations

import torch
from torch import Tensor

from models.qnetwork import QNetwork


def q_of_policy(logits: Tensor) -> Tensor:
    """Expected Q [B] under the soft policy, softmax(Q logits): `logits` [B, K] of K unseen actions, weighted as in the
    conservative term."""
    return (logits.softmax(1) * logits.sigmoid()).sum(1)


def q_of_tasks(network: QNetwork, features: Tensor, gripper: Tensor, action: Tensor, tasks: tuple[int, ...]) -> Tensor:
    """Q of actions [B, 5] for every task of the network, [B, N]; -inf for those not among `tasks`."""
    index = torch.tensor(tasks, device=action.device)
    training = network.training
    network.eval()  # so that its running statistics stay those of training batches
    logits = network.score_tasks(features, gripper, action, index)
    network.train(training)
    q = torch.full((len(action), network.config.num_tasks), -torch.inf, dtype=torch.float32, device=action.device)
    return q.index_copy(1, index, logits.float().sigmoid())
