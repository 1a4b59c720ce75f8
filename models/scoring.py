"""The scorer that a Q-network of images offers its sharing rules (data/scoring.py).

Shapes: `B` transitions, `K` unseen actions, `N` tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.qnetwork import QNetwork


def q_of_policy(logits: Tensor) -> Tensor:
    """Expected Q [B] under the soft policy, softmax(Q logits): `logits` [B, K] of K unseen actions, weighted as in the
    conservative term."""
    return (logits.softmax(1) * logits.sigmoid()).sum(1)


def q_of_tasks(network: QNetwork, features: Tensor, gripper: Tensor, action: Tensor, tasks: Tensor) -> Tensor:
    """Q of actions [B, 5] for every task of the network, [B, N]; -inf for those not among `tasks`
    (int64)."""
    training = network.training
    network.eval()  # so that its running statistics stay those of training batches
    logits = network.score_tasks(features, gripper, action, tasks)
    network.train(training)
    q = torch.full((len(action), network.config.num_tasks), -torch.inf, dtype=torch.float32, device=action.device)
    return q.index_copy(1, tasks, logits.float().sigmoid())


def q_policy_of_tasks(network: QNetwork, features: Tensor, gripper: Tensor, unseen: Tensor, tasks: Tensor) -> Tensor:
    """`q_of_policy` for every task of the network, from unseen actions [B, K, 5]: [B, N]; 0 for those not among
    `tasks`."""
    q = torch.zeros(len(unseen), network.config.num_tasks, device=unseen.device)
    of_tasks = [
        q_of_policy(network.score(features, gripper, unseen, task.expand(len(unseen))).float()) for task in tasks
    ]
    return q.index_copy(1, tasks, torch.stack(of_tasks, 1))


@dataclass(frozen=True, kw_only=True)
class ImageScorer:
    """Q-values of one batch: `logits` [B, 1 + K] of the data's and of unseen actions, by `network`, from its `features`
    of `image`. `tasks`: those that are trained, int64."""

    network: QNetwork
    image: Tensor
    features: Tensor
    gripper: Tensor
    action: Tensor
    task_index: Tensor
    tasks: Tensor
    logits: Tensor

    def q(self) -> Tensor:
        return self.logits[:, 0].sigmoid()

    def q_policy(self) -> Tensor:
        return q_of_policy(self.logits[:, 1:])

    def q_tasks(self) -> Tensor:
        return q_of_tasks(self.network, self.features, self.gripper, self.action, self.tasks)

    def q_by(self, snapshot: QNetwork) -> Tensor:
        q: Tensor = snapshot(self.image, self.gripper, self.action, self.task_index)
        return q.float().sigmoid()
