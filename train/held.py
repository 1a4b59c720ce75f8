"""Tensors that a captured computation reads: new values in the same memory."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from data.batches import Batch


class Held:
    """Keeps tensors by name on a device. Where nothing is captured (`still` is False) they are only moved there."""

    def __init__(self, device: torch.device, still: bool) -> None:
        self._device, self._still = device, still
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, values: Tensor) -> Tensor:
        if values.device != self._device and self._device.type == "cuda":
            values = values.contiguous().pin_memory()
        if not self._still:
            return values.to(self._device, non_blocking=True)
        if name not in self._kept:
            self._kept[name] = torch.empty_like(values, device=self._device)
        kept = self._kept[name]
        if kept.shape != values.shape:
            raise ValueError(f"{name} of a step has shape {list(values.shape)}, of earlier ones {list(kept.shape)}")
        return kept.copy_(values, non_blocking=True)

    def batch(self, batch: Batch) -> Batch:
        names = (f.name for f in fields(batch) if not f.name.startswith("encoded"))
        return replace(batch, **{name: self(name, getattr(batch, name)) for name in names})
