"""Atomic checkpoints, and one more when training ends, by itself or by a signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import TorchCheckpointIO

from models.checkpoint import to_bytes
from sim.files import write_atomic
from sim.options import STOP_SIGNALS

SIGNALS = (signal.SIGINT, *STOP_SIGNALS)
Save = Callable[[lightning.Trainer, lightning.LightningModule, Path], None]


def write_tensors(path: Path, content: Any) -> None:
    """torch.save, atomic: written beside its place and renamed. Lightning writes to TMPDIR, from where a file is
    copied, not renamed, if that is another file system."""
    write_atomic(path, to_bytes(content))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints by `write_tensors`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_tensors(Path(path), checkpoint)


def save_checkpoint(trainer: lightning.Trainer, module: lightning.LightningModule, path: Path) -> None:
    """Save as Lightning does."""
    trainer.save_checkpoint(path)


class StopRequest:
    """Records the first signal that asks a training to stop; a second one stops it at once."""

    def __init__(self) -> None:
        self.number = 0
        self._handlers: dict[int, Any] = {}

    def listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            ignored = [
                number for number in STOP_SIGNALS if signal.getsignal(number) is signal.SIG_IGN
            ]  # e.g. under nohup
            handled = (number for number in SIGNALS if number not in ignored)
            self._handlers = {number: signal.signal(number, self._receive) for number in handled}

    def _receive(self, number: int, *_: Any) -> None:
        self.number = number
        self.restore()

    def restore(self, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __enter__(self) -> StopRequest:
        self.listen()
        return self

    __exit__ = restore


class SaveAtEnd(Callback):
    """Writes the last checkpoint when training ends. A signal ends it after the current step, so that the state between
    two steps is saved; a second signal stops at once.

    Several processes end after the same step: every `agree_every` steps they exchange whether one was asked to."""

    def __init__(self, path: Path, agree_every: int, save: Save = save_checkpoint) -> None:
        self._path, self._agree_every, self._save = path, agree_every, save
        self.request = StopRequest()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.request.listen()

    def on_exception(self, *_: Any) -> None:
        self.request.restore()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        request = self.request
        if trainer.world_size > 1:
            if trainer.global_step % self._agree_every:
                return
            if trainer.strategy.reduce_boolean_decision(bool(request.number), all=False):
                request.number = request.number or signal.SIGINT
        trainer.should_stop = bool(request.number)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._save(trainer, pl_module, self._path)
        self.request.restore()
        if self.request.number:
            if trainer.is_global_zero:
                print(stopped_at(self._path, pl_module.done_steps))
            raise SystemExit(128 + self.request.number)


def stopped_at(path: Path, step: int) -> str:
    """Message of a training that was stopped."""
    return f"\nstopped: {path} holds step {step}; the same command goes on from there"
