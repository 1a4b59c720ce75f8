"""Metadata of a vision checkpoint: enough to act with it, and to refuse it where it does not fit."""

from __future__ import annotations

import dataclasses
from typing import Any

from data.replay import Replay
from models.image_checkpoint import FORMAT
from sim.state import SIM_VERSION
from sim.tasks import TASK_NAMES
from train.qtopt_config import QTOptConfig


def checkpoint_metadata(
    config: QTOptConfig, replay: Replay | None, sharing: dict[str, Any], steps: int, precision: str
) -> dict[str, Any]:
    """Plain values only. `sharing`: the rule, and mean weights by target and source task."""
    return {
        "format": FORMAT,
        "network": dataclasses.asdict(config.network),
        "acting": dataclasses.asdict(config.acting),
        "landmark_weight": config.landmark_weight,
        **(replay.env_options if replay else {}),
        "sim_version": SIM_VERSION,
        "tasks": list(TASK_NAMES),
        "trained_tasks": list(config.tasks),
        "sharing": sharing,
        "steps": steps,
        "precision": precision,
    }
