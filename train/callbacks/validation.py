"""Evaluation in the simulator during training, and the best checkpoint by it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger

from data.replay import Replay
from eval.rollout import EpisodeOutcome, episode_jobs, rollout, summarise
from models.image_checkpoint import read_checkpoint
from sim.files import read_json, write_atomic
from train.callbacks.checkpointing import SaveAtEnd, StopRequest
from train.qtopt_config import QTOptConfig

BEST, FOUND = "best.ckpt", "validation.json"
WAITING = "validating.ckpt"  # to be played; there beyond the evaluation only where that was stopped
SEED = 2000  # other scenes than those of collection, and of evaluation, by which nothing may be selected


class Validation(Checkpoint):
    """Plays a few episodes of each task every `evaluate_every` steps, in worker processes. Writes `validation.json`
    (step -> task -> success rate) and keeps the checkpoint with the highest mean, the first of equals, in `best.ckpt`.
    Lightning calls it after other callbacks, so last.ckpt is written before it begins. An evaluation that was stopped
    is played when the training goes on, so that these files do not depend on stops."""

    def __init__(self, replay: Replay, config: QTOptConfig) -> None:
        self._config, self._out = config, Path(config.out)
        self._env_options = {"image_size": replay.frame_size, **replay.env_options}
        self._requests: list[StopRequest] = []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._requests = [callback.request for callback in callbacks if isinstance(callback, SaveAtEnd)]
        if trainer.is_global_zero:
            self.play_waiting(trainer.global_step, trainer.loggers)
        trainer.strategy.barrier()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *arguments: Any
    ) -> None:
        if trainer.global_step % self._config.evaluate_every:
            return
        trainer.save_checkpoint(self._out / WAITING)
        if trainer.is_global_zero:
            self.play_waiting(trainer.global_step, trainer.loggers)
        trainer.strategy.barrier()

    def play_waiting(self, done: int, loggers: Sequence[Logger] = ()) -> None:
        """Play the checkpoint that waits for its evaluation, if any, unless it is of a step after `done`, which will
        come again."""
        checkpoint = self._out / WAITING
        if not checkpoint.is_file():
            return
        step = read_checkpoint(checkpoint)["switchyard"]["steps"]
        if step <= done:
            success = self._play(checkpoint)
            if not success:
                return
            self._keep(step, checkpoint, success, loggers)
        checkpoint.unlink(missing_ok=True)

    def _play(self, checkpoint: Path) -> dict[str, float]:
        """Success rate by task; {} where the training is asked to stop, which cannot wait for many episodes."""
        config = self._config
        jobs = episode_jobs(config.tasks, config.evaluate_episodes, SEED)
        workers = len(os.sched_getaffinity(0))
        outcomes: list[EpisodeOutcome] = []
        with contextlib.closing(rollout("checkpoint", str(checkpoint), self._env_options, jobs, workers)) as playing:
            for outcome in playing:
                if any(request.number for request in self._requests):
                    return {}
                outcomes.append(outcome)
        return {result.task: result.rate for result in summarise(outcomes, "checkpoint", checkpoint, SEED)}

    def _keep(self, step: int, checkpoint: Path, success: dict[str, float], loggers: Sequence[Logger]) -> None:
        """Record the success rates, and keep the checkpoint if it is the best."""
        mean = float(np.mean(list(success.values())))
        path = self._out / FOUND
        found = read_json(path) if path.is_file() else {}
        earlier = [np.mean(list(rates.values())) for known, rates in found.items() if int(known) < step]
        if mean > max(earlier, default=-1.0):
            os.replace(checkpoint, self._out / BEST)
        write_atomic(path, json.dumps({**found, str(step): success}, indent=1).encode())
        values = {"eval/success_rate": mean, **{f"eval/{task}": rate for task, rate in success.items()}}
        for logger in loggers:
            logger.log_metrics(values, step)
