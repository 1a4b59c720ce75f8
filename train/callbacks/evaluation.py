"""Evaluations while an offline algorithm on states trains, of which the best is reported beside the last."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from eval.returns import Results
from sim.benchmarks.spec import MissingSimulatorError
from sim.files import write_atomic

KEPT = ("name", "returns", "success", "success_at_end")  # of a member's row


class EvaluateEvery(Callback):
    """Plays the policies every so many updates, 0: never, and adds what they earn to the file and to TensorBoard."""

    def __init__(self, path: Path, every: int, play: Callable[[], Results]) -> None:
        self._path, self._every, self._play, self._played = path, every, play, 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """What a run that was killed played after its checkpoint is played again."""
        self._played = pl_module.done_steps
        kept = [each for each in read_evaluations(self._path) if each["updates"] <= self._played]
        if kept or self._path.is_file():
            write_atomic(self._path, json.dumps(kept).encode())

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *arguments: Any) -> None:
        done = pl_module.done_steps
        due = self._every and done // self._every > self._played // self._every
        if not due or done >= pl_module.config.steps:  # the end is evaluated anyway
            return
        self._played = done
        try:
            results = self._play()
        except MissingSimulatorError as error:
            self._every = 0
            tqdm.write(f"not evaluated while it trains: {error}")
            return
        rows = [{key: row[key] for key in KEPT if key in row} for row in results.members]
        listed = [*read_evaluations(self._path), {"updates": done, "members": rows}]
        write_atomic(self._path, json.dumps(listed).encode())
        if trainer.logger is not None:
            board = trainer.logger.experiment
            for row in rows:
                for task, values in row[metric_of(row)].items():
                    board.add_scalar(f"{row['name']}/eval/{task}", np.mean(values), done)


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """Evaluations in the order they were played: {updates, members}; [] without the file."""
    found: list[dict[str, Any]] = json.loads(path.read_bytes()) if path.is_file() else []
    return found


def metric_of(row: dict[str, Any]) -> str:
    """What a member's row is judged by."""
    return "success" if "success" in row else "returns"


def best_of(evaluations: list[dict[str, Any]], last: dict[str, Any], updates: int) -> dict[str, Any]:
    """The best evaluation of the member whose row at the end, after so many updates, is `last`: that with the highest
    mean over tasks; the earlier of equal ones."""
    rows = [
        {"updates": each["updates"], **row}
        for each in [*evaluations, {"updates": updates, "members": [last]}]
        for row in each["members"]
        if row["name"] == last["name"]
    ]
    best = max(rows, key=lambda row: np.mean([np.mean(values) for values in row[metric_of(row)].values()]))
    return {key: best[key] for key in ("updates", *KEPT[1:]) if key in best}
