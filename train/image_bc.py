"""Behaviour cloning of successful episodes from images: the losses, and the baseline that uses them alone
(`--learner bc`), with the Q-learner's network, data and time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from data.batches import Batch
from data.distributed import ddp_correction
from data.replay import Replay
from data.router import RoutableBatch
from models.image_losses import cloning_loss, landmark_loss, point_loss
from models.images import in_crop
from models.networks import build_network
from models.qnetwork import bounds
from models.small_network import Perception, SmallQNetwork
from sim.tasks import TASK_NAMES
from train.image_learner import Computed, ImageLearner
from train.optimizer import configure_adam
from train.qtopt_config import QTOptConfig
from train.seeding import RandomStream

CLONED_WEIGHT: dict[str, Callable[[RoutableBatch], Tensor]] = {  # of `cloned`: factor [B] of a step's weight
    "effective": lambda batch: torch.ones_like(batch.success),
    "successes": lambda batch: torch.where(batch.source_task_index != batch.task_index, 1.0, batch.success),
    "accepted": lambda batch: batch.success,
}
Loss = tuple[Tensor, dict[str, Tensor]]  # and its terms, for the log


def cloned_weight(cloned: str, batch: RoutableBatch, chosen: bool = True) -> Tensor:
    """What each step of a batch counts for the behaviour policy, [B], beside its weight. Shared ones that no rule has
    `chosen` teach Q alone."""
    weight = CLONED_WEIGHT[cloned](batch)
    return weight if chosen else weight * (batch.source_task_index == batch.task_index)


def behaviour_loss(network: SmallQNetwork, batch: Batch, features: Tensor, weight: Tensor) -> Loss:
    """Behaviour-cloning loss of the policy head; `weight` [B] is 0 for steps that it does not clone."""
    mean, command = network.behaviour_policy(features, batch.gripper, batch.task_index)
    loss = cloning_loss(mean.float(), command.float(), batch.action, bounds(features.device), weight)
    loss = ddp_correction(weight) * loss
    return loss, {"cloning": loss.detach()}


def landmark_losses(batch: Batch, perception: Perception, corner: Tensor, image_size: int) -> Loss:
    """Auxiliary losses: attention over the image and landmark regression. `corner` [B, 2]: of the crops."""
    point = in_crop(batch.point, batch.image, corner, image_size)
    visible = batch.point_present & (point > 0).all(-1) & (point < 1).all(-1)
    attention = point_loss(perception.attention.float(), point, visible)
    regression = landmark_loss(perception.landmark.float(), batch.landmark)
    return attention + regression, {"point": attention.detach(), "landmark": regression.detach()}


class BehaviourCloning(ImageLearner):
    """Trains perception and behaviour policy of the small network. `target`, its running average, acts."""

    def __init__(self, config: QTOptConfig, replay: Replay | None = None) -> None:
        super().__init__(config, replay)
        network = build_network(config.network)
        assert isinstance(network, SmallQNetwork)
        self.network = network
        self.target = copy.deepcopy(network).requires_grad_(False).eval()
        for layer in network.q_layers:
            layer.requires_grad_(False)

    def compute(self) -> Computed:
        config, batch = self.config, self.batch
        assert isinstance(self.network, SmallQNetwork)
        image, corner = self.preprocess(batch.image, RandomStream.IMAGE)
        perception = self.network.perceive(image, batch.gripper)
        loss, info = behaviour_loss(self.network, batch, perception.features, cloned_weight(config.cloned, batch))
        if config.landmark_weight:
            auxiliary, more = landmark_losses(batch, perception, corner, config.image_size)
            loss, info = loss + config.landmark_weight * auxiliary, info | more
        rows = {"features": perception.features.detach().flatten(1).sum(1)}
        return Computed(loss=loss, info=info, rows=rows, losses=dict(info), batch=batch)

    def configure_optimizers(self) -> Any:
        return configure_adam(self.network.parameters(), self.config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checkpoints of earlier versions also hold a router."""
        weights = checkpoint["state_dict"]
        for key in [key for key in weights if not key.startswith(("network.", "target."))]:
            del weights[key]

    def sharing(self) -> dict[str, Any]:
        unknown = [[None] * len(TASK_NAMES) for _ in TASK_NAMES]
        return {"rule": self.config.rule, "tasks": list(TASK_NAMES), "weights": unknown}
