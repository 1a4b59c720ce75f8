"""Training throughput and the breakdown of step time, in TensorBoard under `time/`."""

from __future__ import annotations

import functools
import time
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.flop_counter import FlopCounterMode

CEILING_SIZE = {"cpu": 2048, "cuda": 8192}  # of the square matrices


class Throughput(Callback):
    """Logs milliseconds per step of waiting for data and of computing, images per second of one process, and
    utilisation: the FLOPs of a step, counted in the first one, relative to the FLOP rate of a large matrix product.

    Checkpoints, maps and evaluations between two steps are excluded. On a GPU the device is synchronised once per line
    of the log."""

    def __init__(self, log_every: int) -> None:
        self._log_every = log_every
        self._flops = self._steps = 0
        self._compute_s = self._waited_s = 0.0
        self._counter: FlopCounterMode | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        kind = torch.bfloat16 if trainer.precision == "bf16-mixed" else torch.float32
        self._ceiling = _cached_ceiling(kind, pl_module.device.type)
        self._counter = FlopCounterMode(display=False)

    def on_train_batch_start(self, trainer: lightning.Trainer, *arguments: Any) -> None:
        if self._counter:
            self._counter.__enter__()
        self._begin = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        logs = trainer.global_step % self._log_every == 0
        if logs and pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self._compute_s += time.perf_counter() - self._begin
        self._steps += 1
        if self._counter:  # the first step is slow, not only because it is counted
            self._stop_counting()
            self._begin_window(trainer)
        elif logs:
            data_s = trainer.train_dataloader.waited_s - self._waited_s
            step_s = (data_s + self._compute_s) / self._steps
            values = {
                "data_ms": 1000 * data_s / self._steps,
                "compute_ms": 1000 * self._compute_s / self._steps,
                "images_per_s": 2 * len(batch) / step_s,
                "ceiling_share": self._flops / step_s / self._ceiling,
            }
            pl_module.log_dict({f"time/{key}": value for key, value in values.items()})
            self._begin_window(trainer)

    def on_exception(self, *arguments: Any) -> None:
        if self._counter and self._counter.mode:  # or the counting mode would outlive the training
            self._stop_counting()

    def _stop_counting(self) -> None:
        assert self._counter
        self._counter.__exit__(None, None, None)
        self._flops, self._counter = self._counter.get_total_flops(), None

    def _begin_window(self, trainer: lightning.Trainer) -> None:
        self._compute_s, self._steps, self._waited_s = 0.0, 0, trainer.train_dataloader.waited_s  # data.loader.Loader


def ceiling_flops_per_s(kind: torch.dtype, device: str) -> float:
    """Peak FLOP rate: the best of a few products of large square matrices."""
    size = CEILING_SIZE[device]
    left, right = (torch.full((size, size), value, dtype=kind, device=device) for value in (0.5, 0.25))
    times_s = []
    for _ in range(4):
        begin = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for a device
        times_s.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times_s)


_cached_ceiling = functools.cache(ceiling_flops_per_s)
