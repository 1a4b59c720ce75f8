"""The progress bar, and a quiet Lightning."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import lightning
from lightning.pytorch.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Lightning's progress bar, counting the module's steps: after a resume Lightning knows neither the total nor the
    first step."""

    def __init__(self, total: int, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate)
        self._total = total

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self._count_from(pl_module.done_steps)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: Any, *arguments: Any) -> None:
        """Not called when a run is resumed."""
        super().on_train_epoch_start(trainer, pl_module, *arguments)
        self._count_from(pl_module.done_steps)

    def _count_from(self, done: int) -> None:
        bar = self.train_progress_bar
        bar.reset(total=self._total)
        bar.initial = bar.n = done
        bar.set_description("train")

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *arguments: Any) -> None:
        done = pl_module.done_steps
        if self.is_enabled and (done % self.refresh_rate == 0 or done == self._total):
            self.train_progress_bar.n = done
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_exception(self, *arguments: Any) -> None:
        if self._train_progress_bar is not None:
            self.train_progress_bar.close()  # so that the next message begins a line

    def get_metrics(self, *arguments: Any) -> dict[str, Any]:
        metrics = super().get_metrics(*arguments)
        metrics.pop("v_num", None)  # a run has one version
        return metrics


def quiet_lightning() -> None:
    """Silence Lightning's tips, device lines and warnings, which would break up the progress bar."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torch")
