"""The training of an offline algorithm on states under Lightning: its updates, logging, checkpoints and evaluations."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from tqdm import tqdm

from eval.returns import Results
from train.callbacks.checkpointing import SaveAtEnd
from train.callbacks.evaluation import EvaluateEvery
from train.callbacks.progress import Progress
from train.callbacks.router_report import RouterReport
from train.launch import fit, join_launch
from train.precision import resolve_precision
from train.run_dir import LAST, LOG
from train.state_algorithm import StateAlgorithm
from train.state_checkpoints import Checkpoints, SaveEvery
from train.state_config import StateConfig

EVALUATIONS = "evaluations.json"


class StateRun(lightning.LightningModule):
    """Runs the updates of an algorithm, several in a step of Lightning."""

    def __init__(self, algorithm: StateAlgorithm, config: StateConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.algorithm, self.config, self._warned = algorithm, config, False

    def training_step(self, batch: Any, number: int) -> None:
        """`updates_per_step` updates, or as many as are left."""
        for _ in range(min(self.config.updates_per_step, self.config.steps - self.algorithm.updates)):
            values = self.algorithm.update()
        if (number + 1) % self.log_every == 0:  # others Lightning would gather and drop
            for k, name in enumerate(self.config.member_names):
                self.log_dict({f"{name}/{key}": value[k] for key, value in values.items()})
            self.log("step", float(self.algorithm.updates))
            if not self._warned and (warning := self.algorithm.warning(values)):
                self._warned = True
                tqdm.write(f"update {self.algorithm.updates}: {warning}", file=sys.stderr)

    @property
    def log_every(self) -> int:
        """Steps of Lightning between values for TensorBoard."""
        return max(1, self.config.log_every // self.config.updates_per_step)

    def configure_optimizers(self) -> None:
        """The algorithm steps its own."""

    @property
    def done_steps(self) -> int:
        return int(self.algorithm.updates)

    def routing(self) -> dict[str, dict[str, Any]]:
        """Each member's routing report."""
        return dict(zip(self.config.member_names, self.algorithm.shared.report(), strict=True))


def fit_updates(
    run: StateRun,
    checkpoints: Checkpoints,
    config: StateConfig,
    precision: str,
    resumed: bool,
    played: Callable[[], Results],
) -> None:
    out, done = Path(config.out), run.done_steps
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=1,
        precision=resolve_precision(precision),  # type: ignore[arg-type]
        plugins=[join_launch(1, 1)[0]],
        default_root_dir=out,
        logger=TensorBoardLogger(out, name="", version=LOG, purge_step=done + 1 if resumed else None),
        log_every_n_steps=run.log_every,
        callbacks=[
            Progress(config.steps),
            SaveEvery(out / LAST, config.checkpoint_every, checkpoints.save),
            SaveAtEnd(out / LAST, 1, checkpoints.save),
            RouterReport(config.checkpoint_every),
            EvaluateEvery(out / EVALUATIONS, config.evaluate_every, played),
        ],
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    left = range(-(-(config.steps - done) // config.updates_per_step))
    loader: Any = DataLoader(list(left), batch_size=None)  # type: ignore[arg-type]
    rates = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(config) if field.name.endswith("lr")]
    fit(trainer, run, loader, out, " or ".join(rates))
