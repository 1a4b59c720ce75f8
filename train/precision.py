"""Precision of training: as given, or bfloat16 where the hardware supports it."""

from __future__ import annotations

import torch

PRECISIONS = ("auto", "32-true", "bf16-mixed")


def resolve_precision(name: str, on_gpu: bool | None = None) -> str:
    """Resolve `auto`: bfloat16 on a GPU or an x86 CPU with units for it; a CPU without them is hundreds of times slower
    in it. Asks for features and measures nothing, so the answer is always the same on one machine. `on_gpu`: whether a
    GPU does the work; default: if there is one."""
    if name != "auto":
        return name
    return _auto_precision(torch.cuda.is_available() if on_gpu is None else on_gpu)


def _auto_precision(on_gpu: bool) -> str:
    if on_gpu:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu.get_capabilities().get("avx512_bf16", False)  # CPUs with AMX have it too
    return "bf16-mixed" if fast else "32-true"
