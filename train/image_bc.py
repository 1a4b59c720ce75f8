"""Behaviour cloning of the successes with the Q-learner's trunk, data and time: the yardstick (`--learner clone`)."""

from __future__ import annotations

from torch import Tensor

from data.batches import Batch
from models.small_network import SmallQNetwork
from train.qtopt import Chance, QTOpt


class Cloning(QTOpt):
    """Trains the cloned policy and what tells where things are; the Q-function stays as it began."""

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        assert isinstance(self.network, SmallQNetwork)
        image, corner = self.view(batch.image, Chance.VIEW)
        sight = self.network.look(image, batch.gripper)
        loss, info = self.cloning(batch, sight.features, batch.success)
        if self.config.landmark_weight:
            telling, more = self.telling(batch, sight, corner)
            loss, info = loss + self.config.landmark_weight * telling, info | more
        self.finite.add(self.global_step + 1, {"features": sight.features.flatten(1).sum(1)}, batch.task_index, info)
        if self.logs_now:
            self.log_values({"loss": loss.detach(), **info})
            self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss
