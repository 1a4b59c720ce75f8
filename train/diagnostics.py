"""Diagnostics of a Q-function that sees images, as pure functions. `B` transitions, `K` unseen actions."""

from __future__ import annotations

import torch
from torch import Tensor

from data.batches import Batch
from models.acting import ActingConfig, best_action
from models.image_losses import calibration_error
from models.qnetwork import QNetwork


@torch.no_grad()
def acting_diagnostics(
    network: QNetwork, batch: Batch, image: Tensor, acting: ActingConfig, discount: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Q of the data's actions, max Q, their gap, and calibration against the discounted outcome, on own transitions.
    {} where there are none."""
    own = ~batch.is_shared
    if not own.any():
        return {}
    features = network.encode(image, batch.gripper)
    logits = network.score(features, batch.gripper, batch.action[:, None], batch.task_index)
    _, best = best_action(network, features, batch.gripper, batch.task_index, acting, generator)
    q, best = logits[own, 0].float().sigmoid(), best[own]
    outcome = batch.success[own] * discount ** (batch.steps_to_go[own] - 1)
    gap, error = (best - q).mean(), calibration_error(q, outcome)
    return {"q_acting": q.mean(), "q_best": best.mean(), "q_gap": gap, "calibration_error": error}


def loss_diagnostics(batch: Batch, logits: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Q on own steps of successes and failures, rank of the data's action among unseen ones, and mean weight of shared
    transitions: `logits` [B, 1 + K] of the data's and of unseen actions, `weight` [B]."""
    values = {}
    q, own, success = logits[:, 0].sigmoid(), ~batch.is_shared, batch.success > 0
    for name, group in (("success", success & own), ("failure", ~success & own)):
        if group.any():
            values[f"q_{name}"] = q[group].mean()
    if (success & own).any() and logits.shape[1] > 1:
        values["data_rank"] = (logits[:, :1] > logits[:, 1:]).float().mean(1)[success & own].mean()
    if batch.is_shared.any():
        values["shared_weight"] = weight[batch.is_shared].mean()
    return values
