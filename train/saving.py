"""The last checkpoint of a training that ends, by itself or by a signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; what batch queues send before they kill
Save = Callable[[lightning.Trainer, lightning.LightningModule, Path], None]


def save_whole(trainer: lightning.Trainer, module: lightning.LightningModule, path: Path) -> None:
    """As Lightning does."""
    trainer.save_checkpoint(path)


class SaveAtEnd(Callback):
    """Writes the last checkpoint when training ends. A signal ends it after the step under way, so that what is saved
    is the state between two steps; a second one stops at once.

    Of several processes, all end after the same step: after each `agree_every` they ask each other."""

    def __init__(self, path: Path, agree_every: int, save: Save = save_whole) -> None:
        self._path, self._agree_every, self._save = path, agree_every, save
        self._signal = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._interrupt) for number in SIGNALS}

    def _interrupt(self, number: int, *_: Any) -> None:
        self._signal = number
        self._restore()

    def _restore(self, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    on_exception = _restore

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.world_size > 1:
            if trainer.global_step % self._agree_every:
                return
            if trainer.strategy.reduce_boolean_decision(bool(self._signal), all=False):
                self._signal = self._signal or signal.SIGINT
        trainer.should_stop = bool(self._signal)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._save(trainer, pl_module, self._path)
        self._restore()
        if self._signal:
            if trainer.is_global_zero:
                step = pl_module.done_steps
                print(f"\nstopped: {self._path} holds step {step}; the same command goes on from there")
            raise SystemExit(128 + self._signal)
