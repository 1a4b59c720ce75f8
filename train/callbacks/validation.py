"""Evaluation in the simulator during training, and the best checkpoint by it."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.callbacks import Callback, Checkpoint

from data.replay import Replay
from eval.rollout import EpisodeOutcome, episode_jobs, rollout, summarise
from sim.files import read_json, write_atomic
from train.callbacks.checkpointing import SaveAtEnd, StopRequest
from train.qtopt_config import QTOptConfig

BEST, FOUND = "best.ckpt", "validation.json"
SEED = 2000  # other scenes than those of collection, and of evaluation, by which nothing may be selected


class Validation(Checkpoint):
    """Plays a few episodes of each task every `evaluate_every` steps, in worker processes. Writes `validation.json`
    (step -> task -> success rate) and keeps the checkpoint with the highest mean, the first of equals, in `best.ckpt`.
    Lightning calls it after other callbacks, so last.ckpt is written before it begins."""

    def __init__(self, replay: Replay, config: QTOptConfig) -> None:
        self._config, self._out = config, Path(config.out)
        self._env_options = {"image_size": replay.frame_size, **replay.env_options}
        self._requests: list[StopRequest] = []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._requests = [callback.request for callback in callbacks if isinstance(callback, SaveAtEnd)]

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *arguments: Any
    ) -> None:
        if trainer.global_step % self._config.evaluate_every:
            return
        checkpoint = self._out / ".validated.tmp"
        trainer.save_checkpoint(checkpoint)
        if trainer.is_global_zero:
            if success := self._play(checkpoint):
                self._keep(trainer, checkpoint, success)
            checkpoint.unlink(missing_ok=True)
        trainer.strategy.barrier()

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

    def _keep(self, trainer: lightning.Trainer, checkpoint: Path, success: dict[str, float]) -> None:
        """Record the success rates, and keep the checkpoint if it is the best."""
        mean = float(np.mean(list(success.values())))
        path = self._out / FOUND
        found = read_json(path) if path.is_file() else {}
        before = [np.mean(list(s.values())) for step, s in found.items() if int(step) < trainer.global_step]
        if mean > max(before, default=-1.0):
            os.replace(checkpoint, self._out / BEST)
        write_atomic(path, json.dumps({**found, str(trainer.global_step): success}, indent=1).encode())
        values = {"eval/success_rate": mean, **{f"eval/{task}": rate for task, rate in success.items()}}
        for logger in trainer.loggers:
            logger.log_metrics(values, trainer.global_step)
