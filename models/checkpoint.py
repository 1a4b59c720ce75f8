"""Reading checkpoints safely: tensors and plain values only, never arbitrary pickles."""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.old_names import current_options
from sim.state import SIM_VERSION
from sim.tasks import TASK_NAMES

FORMAT = 4  # of `checkpoint_metadata` (train/metadata.py)
READABLE = (3, FORMAT)  # 3 has the names of models/old_names.py

ACTING = "target."  # prefix of the weights of the network that acts
RUN_CONFIG = "config.json"  # options of a run, beside its checkpoints
LOCK = "train.lock"  # held while a run trains


def to_bytes(content: Any) -> bytes:
    """The bytes that torch.save would write into a file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or made for another world; the message names both sides."""


@dataclass(frozen=True)
class CheckpointFile:
    """Content of a checkpoint file, read once: what is loaded, here or in worker processes, is what was hashed, even if
    a training has replaced the file since."""

    path: Path
    content: bytes

    @classmethod
    def of(cls, source: str | Path | CheckpointFile) -> CheckpointFile:
        """Read the file at a path (a CheckpointFile is returned as it is); CheckpointError where there is none."""
        if isinstance(source, CheckpointFile):
            return source
        path = Path(source)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint")
        return cls(path, path.read_bytes())

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def __str__(self) -> str:
        return str(self.path)


Source = str | Path | CheckpointFile


def read_plain(source: Source) -> Any:
    """Content of a torch.save file, on the CPU; CheckpointError where it is damaged or holds more than tensors and
    plain values."""
    file = CheckpointFile.of(source)
    try:
        with zipfile.ZipFile(io.BytesIO(file.content)) as archive:  # torch.load checks no checksum
            damaged = archive.testzip()
        checkpoint = torch.load(io.BytesIO(file.content), map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file}: not a checkpoint, or a damaged one ({len(file.content)} bytes)") from error
    if damaged is not None:
        raise CheckpointError(f"{file}: damaged checkpoint, the checksum of {damaged} does not match")
    return checkpoint


def read_checkpoint(source: Source) -> dict[str, Any]:
    """A vision checkpoint, on the CPU; `["switchyard"]` is its metadata (train/metadata.py), under current names."""
    path = CheckpointFile.of(source)
    checkpoint = read_plain(path)
    metadata = checkpoint.get("switchyard") if isinstance(checkpoint, dict) else None
    if not isinstance(metadata, dict) or "tasks" not in metadata:
        raise CheckpointError(f"{path}: a checkpoint, but not of a policy that sees pictures")
    if metadata.get("format") not in READABLE:
        raise CheckpointError(f"{path}: checkpoint format {metadata.get('format')}, this version reads {FORMAT}")
    if metadata.get("sim_version") != SIM_VERSION:
        raise CheckpointError(f"{path}: trained in world {metadata.get('sim_version')}, this version has {SIM_VERSION}")
    tasks = tuple(metadata["tasks"])
    if tasks != TASK_NAMES:
        raise CheckpointError(f"{path}: trained for the task list {tasks}, this version has {TASK_NAMES}")
    metadata |= {key: current_options(metadata[key]) for key in ("network", "acting")}
    return cast("dict[str, Any]", checkpoint)


def acting_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Weights of the averaged network, which acts, by their names in it."""
    weights: dict[str, Tensor] = checkpoint["state_dict"]
    return {key.removeprefix(ACTING): value for key, value in weights.items() if key.startswith(ACTING)}


def load_finite(module: nn.Module, weights: dict[str, Tensor], path: Source) -> None:
    """`load_weights`, with a CheckpointError also where a weight is not finite."""
    load_weights(module, weights, path)
    check_finite(module, path)


def check_finite(module: nn.Module, path: Source, besides: tuple[str, ...] = ()) -> None:
    """CheckpointError where a weight that was loaded from there is not finite; keys that begin with `besides` may."""
    if key := first_not_finite(module, besides):
        raise CheckpointError(f"{path}: its training diverged: weight {key} is NaN or infinite")


def first_not_finite(module: nn.Module, besides: tuple[str, ...] = ()) -> str:
    """The name of a parameter or buffer that holds NaN or infinity; '' for none."""
    weights = ((key, value) for key, value in module.state_dict().items() if not key.startswith(besides))
    return next((key for key, value in weights if not value.isfinite().all()), "")


def load_weights(module: nn.Module, weights: dict[str, Tensor], path: Source) -> None:
    """Load the weights of the checkpoint at `path` into a module; CheckpointError where they are another network's."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit this version's network, train it again") from error
