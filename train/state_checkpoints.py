"""Checkpoints of a run on states: weights, routers and optimizers of the algorithm, bound to the run's data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import nn

from models.checkpoint import CheckpointError, check_finite, load_weights, read_plain
from train.callbacks.checkpointing import write_tensors
from train.finite import check_weights
from train.state_algorithm import StateAlgorithm

FORMAT = 6  # 5: all members drew from one random stream
READ = (4, 5, FORMAT)


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
        networks = {name: child for name, child in algorithm.named_children() if name != "shared"}  # scores may be -inf
        check_weights(algorithm.updates, **networks)
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
        """Go on from it; its precision. CheckpointError where it is another run's. One of an earlier format goes on,
        and a line says how it differs from a run that begins now."""
        algorithm, found = self._algorithm, read_plain(path)
        if not isinstance(found, dict) or found.get("format") not in READ:
            raise CheckpointError(f"{path}: not a checkpoint of an offline algorithm on states, format {FORMAT}")
        if found["format"] < FORMAT:
            print(
                f"{path}: begun by an earlier version, whose members shared their random numbers; it goes on with new"
            )
        if found["format"] == 4:
            found = _from_format_4(found)
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


FORMAT_4 = {  # prefixes of the weights' names, when CQL was the only algorithm
    "mean": "normaliser.mean",
    "std": "normaliser.std",
    "policy.body": "policy.mlp",
    "q.body": "q.mlp",
    "target.body": "target.mlp",
    "snapshot.body": "shared.snapshot.q.mlp",
    "_routers": "shared.routers",
}


def _from_format_4(found: dict[str, Any]) -> dict[str, Any]:
    def renamed(key: str) -> str:
        return next((new + key.removeprefix(old) for old, new in FORMAT_4.items() if key.startswith(old)), key)

    weights = {renamed(key): value for key, value in found["state_dict"].items()}
    return {**found, "algorithm": "cql", "state_dict": weights}
