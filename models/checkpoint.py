"""Reading checkpoints safely: tensors and plain values only, never arbitrary pickles."""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RUN_CONFIG = "config.json"  # options of a run, beside its checkpoints


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
