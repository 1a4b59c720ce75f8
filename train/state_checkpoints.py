"""Checkpoints of a run on states: weights, routers and optimizers of the algorithm, bound to the run's data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import nn

from models.checkpoint import CheckpointError, check_finite, first_not_finite, load_weights, read_plain
from train.callbacks.checkpointing import write_tensors
from train.finite import NotFiniteError
from train.state_algorithm import StateAlgorithm

FORMAT = 7
EARLIER = (4, 5, 6)  # whose sharing had another state


class SaveEvery(Callback):
    """Writes the checkpoint every so many updates."""

    def __init__(self, path: Path, every: int, save: Callable[..., None]) -> None:
        self._path, self._every, self._saved, self._save = path, every, 0, save

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._saved = pl_module.done_steps

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *arguments: Any) -> None:
        if pl_module.done_steps // self._every > self._saved // self._every:
            self._save(trainer, pl_module, self._path)
            self._saved = pl_module.done_steps


class Checkpoints:
    """All that a run goes on from: tensors and plain values, less than Lightning would write."""

    def __init__(self, name: str, algorithm: StateAlgorithm, digest: str) -> None:
        self._name, self._algorithm, self._digest = name, algorithm, digest

    def save(self, trainer: lightning.Trainer, module: Any, path: Path) -> None:
        """NotFiniteError where a weight is not finite."""
        algorithm = self._algorithm
        algorithm.finite.check()
        if key := first_not_finite(algorithm, besides=("shared.",)):  # whose scores may be -inf
            raise NotFiniteError(f"step {algorithm.updates}: weight {key} is NaN or infinite")
        content = {
            "format": FORMAT,
            "algorithm": self._name,
            "data": self._digest,
            "updates": algorithm.updates,
            "precision": trainer.precision,
            "state_dict": algorithm.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in algorithm.optimizers],
        }
        write_tensors(path, content)

    def restore(self, path: Path, data: str) -> str:
        """Go on from it; its precision. CheckpointError where it is another run's, or an earlier version's."""
        algorithm, found = self._algorithm, read_plain(path)
        known = found.get("format") if isinstance(found, dict) else None
        if known in EARLIER:
            raise CheckpointError(
                f"{path}: begun by an earlier version; train anew in another --out (its policy.pt is read)"
            )
        if known != FORMAT:
            raise CheckpointError(f"{path}: not a checkpoint of an offline algorithm on states, format {FORMAT}")
        if found["algorithm"] != self._name:
            raise CheckpointError(f"{path}: a checkpoint of {found['algorithm']}, not of {self._name}")
        if found["data"] != self._digest:
            raise CheckpointError(f"{path}: learned from other data than {data} holds now")
        assert isinstance(algorithm, nn.Module)
        load_weights(algorithm, found["state_dict"], path)
        check_finite(algorithm, path, besides=("shared.",))
        algorithm.updates = found["updates"]
        for optimizer, state in zip(algorithm.optimizers, found["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        return str(found["precision"])
