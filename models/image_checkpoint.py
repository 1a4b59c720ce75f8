"""Checkpoints of policies that act on images (train/metadata.py)."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from models.checkpoint import CheckpointError, CheckpointFile, Source, read_plain
from models.old_names import current_options
from sim.image_sizes import SMALL_PX
from sim.state import SIM_VERSION
from sim.tasks import TASK_NAMES

FORMAT = 6
READABLE = (3, 4, 5, FORMAT)  # 3 has the names of models/old_names.py; 3 and 4 have landmarks without presence
OLD_LANDMARK_SIZE = 5
WORLDS = (5, SIM_VERSION)  # in which its policies act; 5 differs in the appearances of the train split alone
ACTING = "target."  # prefix of the weights of the network that acts


def read_checkpoint(source: Source) -> dict[str, Any]:
    """A vision checkpoint, on the CPU; `["switchyard"]` is its metadata (train/metadata.py), under current names."""
    path = CheckpointFile.of(source)
    checkpoint = read_plain(path)
    metadata = checkpoint.get("switchyard") if isinstance(checkpoint, dict) else None
    if not isinstance(metadata, dict) or "tasks" not in metadata:
        raise CheckpointError(f"{path}: a checkpoint, but not of a policy that sees pictures")
    if metadata.get("format") not in READABLE:
        raise CheckpointError(f"{path}: checkpoint format {metadata.get('format')}, this version reads {FORMAT}")
    if metadata.get("sim_version") not in WORLDS:
        raise CheckpointError(f"{path}: trained in world {metadata.get('sim_version')}, this version has {SIM_VERSION}")
    tasks = tuple(metadata["tasks"])
    if tasks != TASK_NAMES:
        raise CheckpointError(f"{path}: trained for the task list {tasks}, this version has {TASK_NAMES}")
    metadata |= {key: current_options(metadata[key]) for key in ("network", "acting")}
    if metadata["network"]["image_size"] <= SMALL_PX[1]:
        metadata["network"].setdefault("landmark_size", OLD_LANDMARK_SIZE)
    return cast("dict[str, Any]", checkpoint)


def acting_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Weights of the averaged network, which acts, by their names in it."""
    weights: dict[str, Tensor] = checkpoint["state_dict"]
    return {key.removeprefix(ACTING): value for key, value in weights.items() if key.startswith(ACTING)}
