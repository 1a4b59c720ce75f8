"""Whether to multiply in bfloat16: asked for, or where the hardware does so."""

from __future__ import annotations

import torch

PRECISIONS = ("auto", "32-true", "bf16-mixed")


def resolve_precision(name: str, on_gpu: bool | None = None) -> str:
    """`auto`: bfloat16 on a GPU or an x86 CPU with such units; a CPU without them is hundreds of times slower in it.
    The same on each call on one machine, as a time would not be. `on_gpu`: where the work is done; default: on a GPU if
    there is one."""
    if name != "auto":
        return name
    return _auto_precision(torch.cuda.is_available() if on_gpu is None else on_gpu)


def _auto_precision(on_gpu: bool) -> str:
    if on_gpu:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu.get_capabilities().get("avx512_bf16", False)  # CPUs with AMX have it too
    return "bf16-mixed" if fast else "32-true"
