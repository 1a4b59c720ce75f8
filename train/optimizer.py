"""Optimiser and learning-rate schedule of the learners that see images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from train.qtopt_config import QTOptConfig

FINAL_LR_FRACTION = 0.02  # of the initial one, with `lr_decay`


def configure_adam(parameters: Iterable[Tensor], config: QTOptConfig) -> Any:
    """Adam with a constant or linearly decaying learning rate, in the form of Lightning's `configure_optimizers`."""
    adam = torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    end = FINAL_LR_FRACTION if config.lr_decay else 1.0
    schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, end, total_iters=config.steps)
    return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
