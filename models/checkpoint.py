"""Reading checkpoints: tensors and plain values only, never a pickle of a stranger's making."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sim.state import SIM_VERSION
from sim.tasks import TASK_NAMES

FORMAT = 3  # of what `on_save_checkpoint` writes (train/qtopt.py)

ACTING = "target."  # of the weights of the network that acts
RUN_CONFIG = "config.json"  # beside the checkpoints of a run
LOCK = "train.lock"  # held while a run trains


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or made for another world; the message names both sides."""


def read_plain(path: str | Path) -> Any:
    """What a file of torch.save holds, on the CPU; CheckpointError where it is damaged or holds more than tensors and
    plain values."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load checks no checksum
            damaged = archive.testzip()
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: not a checkpoint, or a damaged one ({path.stat().st_size} bytes)") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged checkpoint, the checksum of {damaged} does not match")
    return checkpoint


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The whole checkpoint, on the CPU; `["switchyard"]` describes it (train/qtopt.py)."""
    checkpoint = read_plain(path)
    about = checkpoint.get("switchyard") if isinstance(checkpoint, dict) else None
    if not isinstance(about, dict) or "tasks" not in about:
        raise CheckpointError(f"{path}: a checkpoint, but not of a policy that sees pictures")
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {about.get('format')}, this version reads {FORMAT}")
    if about.get("sim_version") != SIM_VERSION:
        raise CheckpointError(f"{path}: trained in world {about.get('sim_version')}, this version has {SIM_VERSION}")
    tasks = tuple(about["tasks"])
    if tasks != TASK_NAMES:
        raise CheckpointError(f"{path}: trained for the task list {tasks}, this version has {TASK_NAMES}")
    return cast("dict[str, Any]", checkpoint)


def acting_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Those of the averaged network, by their names in it."""
    weights: dict[str, Tensor] = checkpoint["state_dict"]
    return {key.removeprefix(ACTING): value for key, value in weights.items() if key.startswith(ACTING)}


def load_weights(module: nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    """Into the module, from the checkpoint at `path`; CheckpointError where they are those of another network."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit this version's network, train it again") from error
