"""Metadata of a vision checkpoint: enough to act with it, and to refuse it where it does not fit."""

from __future__ import annotations

import dataclasses
from typing import Any

from data.replay import Replay
from models.image_checkpoint import FORMAT
from sim.state import SIM_VERSION
from sim.tasks import TASK_NAMES
from train.qtopt_config import QTOptConfig

FREE_TO_CHANGE = (
    "data",  # bound by its content, not by its path
    "steps",
    "workers",
    "cache_mib",
    "decode",
    "frames",
    "checkpoint_every",
    "log_every",
    "q_maps_every",
    "evaluate_every",
    "evaluate_episodes",
    "precision",
    "out",
)  # options that do not change what a step learns; when a run is resumed
PATHS = ("start_from",)


def checkpoint_metadata(
    config: QTOptConfig, replay: Replay | None, sharing: dict[str, Any], steps: int, precision: str
) -> dict[str, Any]:
    """Plain values only. `sharing`: the rule, and mean weights by target and source task. `options`: those that tell
    two recipes apart; `episodes_sha256`: of the dataset."""
    options = dataclasses.asdict(config)
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
        "options": {name: value for name, value in options.items() if name not in (*FREE_TO_CHANGE, *PATHS)},
        "episodes_sha256": replay.digest if replay else "",
    }
