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
    """Plays the policies every so many updates, 0: never, and adds what they earn to the file and to TensorBoard. The
    last evaluation is the run's own."""

    def __init__(self, path: Path, every: int, play: Callable[[], Results]) -> None:
        self._path, self._every, self._play, self._last = path, every, play, 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """A run that was killed plays again what came after its checkpoint, and what it was killed in."""
        done = pl_module.done_steps
        kept = [each for each in read_evaluations(self._path) if each["updates"] <= done]
        if kept or self._path.is_file():
            write_atomic(self._path, json.dumps(kept).encode())
        self._last = last_evaluation(kept)
        self._evaluate(trainer, done)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *arguments: Any) -> None:
        if pl_module.done_steps < pl_module.config.steps and not trainer.should_stop:
            self._evaluate(trainer, pl_module.done_steps)

    def _evaluate(self, trainer: lightning.Trainer, done: int) -> None:
        """If it is due."""
        if not is_due(self._every, done, self._last):
            return
        self._last = done
        try:
            results = self._play()
        except MissingSimulatorError as error:
            self._every = 0
            tqdm.write(f"not evaluated while it trains: {error}")
            return
        add_evaluation(self._path, results, done)
        if trainer.logger is not None:
            board = trainer.logger.experiment
            for row in results.members:
                for task, values in row[metric_of(row)].items():
                    board.add_scalar(f"{row['name']}/eval/{task}", np.mean(values), done)


def is_due(every: int, updates: int, last: int) -> bool:
    """Whether an evaluation is due after so many updates, the last one having been after `last`."""
    return bool(every) and updates // every > last // every


def last_evaluation(listed: list[dict[str, Any]]) -> int:
    """The updates after which the last one was played; 0 without any."""
    return max((each["updates"] for each in listed), default=0)


def add_evaluation(path: Path, results: Results, updates: int) -> None:
    rows = [{key: row[key] for key in KEPT if key in row} for row in results.members]
    one = {"updates": updates, "episodes": results.header["episodes"], "members": rows}
    write_atomic(path, json.dumps([*read_evaluations(path), one]).encode())


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """Evaluations in the order they were played: {updates, episodes, members}; [] without the file."""
    found: list[dict[str, Any]] = json.loads(path.read_bytes()) if path.is_file() else []
    return found


def metric_of(row: dict[str, Any]) -> str:
    """The metric that a member's row is judged by."""
    return "success" if "success" in row else "returns"


def best_of(evaluations: list[dict[str, Any]], results: Results, name: str, updates: int) -> dict[str, Any]:
    """The best evaluation of a member, of those of as many episodes as the last one, `results` after so many updates:
    that with the highest mean over tasks, the earlier of equal ones. Chosen by the episodes that it reports, it is
    biased upwards."""
    episodes = results.header["episodes"]
    last = {"updates": updates, "episodes": episodes, "members": results.members}
    rows = [
        {"updates": each["updates"], **row}
        for each in [*evaluations, last]
        for row in each["members"]
        if row["name"] == name and each["episodes"] == episodes
    ]
    best = max(rows, key=lambda row: np.mean([np.mean(values) for values in row[metric_of(row)].values()]))
    return {key: best[key] for key in ("updates", *KEPT[1:]) if key in best}
