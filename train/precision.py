"""Whether to multiply in bfloat16: asked for, or measured."""

from __future__ import annotations

import functools
import time

import torch

PRECISIONS = ("auto", "32-true", "bf16-mixed")


def resolve_precision(name: str, on_gpu: bool | None = None) -> str:
    """`auto`: bfloat16 on a GPU that has it; on a CPU whichever is measured to multiply faster, for one without such
    units is hundreds of times slower in it. `on_gpu`: where the work is done; default: on a GPU if there is one."""
    if name != "auto":
        return name
    return _auto_precision(torch.cuda.is_available() if on_gpu is None else on_gpu)


@functools.cache
def _auto_precision(on_gpu: bool) -> str:
    if on_gpu:
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if _matmul_s(torch.bfloat16) < 0.8 * _matmul_s(torch.float32) else "32-true"


def _matmul_s(kind: torch.dtype) -> float:
    matrix = torch.ones(512, 512, dtype=kind)
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        times.append(time.perf_counter() - begin)
        if times[-1] > 0.2:
            break
    return min(times)
