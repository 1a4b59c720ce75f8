"""`make bench-vision`: the training step and the choice of an action beside their floors, on the CPU or on a GPU.

The floor of a step is its operations, counted by PyTorch forward and backward, at the rate of a large square matrix
product in the same precision and the same process. Every case runs in a process of its own, so that its peak memory is
its own. The straightforward step does the same in float32 as one would write it first: the candidates' maps are made
before they are convolved, in PyTorch's usual memory order, the averages weight by weight.
"""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from bench.report import Row
from bench.step import Case, Measurement, acting, measure
from sim.tasks import TASK_NAMES
from train.config import PRESETS
from train.run import resolve_precision

LEAST_SHARE = {"472": 0.35, "64": 0.45}
LEAST_TIMES_PLAIN = {"cpu": 3.0, "cuda": 4.0}
MOST_MEMORY_GIB = {"cpu": 10.0, "cuda": 12.0}
MOST_ACTING_TIMES = 1.3  # on a CPU, beside trunk and candidates alone
MOST_ACTING_MS = 4.0  # on a GPU
LEAST_SMALL_STEPS_PER_S = 300.0  # on a GPU
LABELS = {"32-true": "float32", "bf16-mixed": "bfloat16"}


def run(quick: bool) -> list[Row]:
    device, precision = "cuda" if torch.cuda.is_available() else "cpu", resolve_precision("auto")
    label, small = LABELS[precision], PRESETS["vision-64"]
    batch = 1 if quick else 4
    large = replace(PRESETS["vision-472"], batch_size=batch, tasks=TASK_NAMES[:batch])
    few, many = (1, 2) if quick else (3, 30)

    step = _alone(measure, Case(config=large, precision=precision, num_steps=few))
    plain = _alone(measure, Case(config=large, precision="32-true", num_steps=few, plain=True))
    rows = [
        _share(f"step at 472 px, {label}", step, LEAST_SHARE["472"]),
        Row(
            name="  beside the straightforward step in float32",
            value=1 / step.step_s,
            unit="steps/s",
            peer=1 / plain.step_s,
            ratio=plain.step_s / step.step_s,
            target=LEAST_TIMES_PLAIN[device],
            note=f"{plain.flops / 1e9:.0f} GFLOP at {plain.flops / plain.step_s / 1e9:.0f} GFLOP/s",
        ),
    ]
    if not quick:
        full = _alone(measure, Case(config=replace(large, batch_size=32, tasks=TASK_NAMES[:8]), precision=precision))
        most = MOST_MEMORY_GIB[device]
        note = f"batch {full.batch}; " + ("on the device" if device == "cuda" else "the whole process, with torch")
        rows.append(
            Row(name="  memory at 472 px", value=full.peak_gib, unit="GiB", most=most, target_of="value", note=note)
        )
    for name, config in (("vision-64", small), ("demo's options", replace(PRESETS["demo"], batch_size=256))):
        config = replace(config, batch_size=16) if quick else config
        found = _alone(measure, Case(config=config, precision=precision, num_steps=many))
        rows.append(
            _share(f"step at 64 px, {name}, {label}", found, LEAST_SHARE["64"] if name == "vision-64" else None)
        )
        if device == "cuda":
            rows.append(
                Row(
                    name="  of it rate",
                    value=1 / found.step_s,
                    unit="steps/s",
                    target=LEAST_SMALL_STEPS_PER_S if name == "vision-64" else None,
                    target_of="value",
                )
            )
    action_s, trunk_s, candidates_s = _alone(acting, large, precision, few + 2)
    alone_s = trunk_s + candidates_s
    rows.append(
        Row(
            name=f"an action at 472 px, 2 x 64 candidates, {label}",
            value=1000 * action_s,
            unit="ms",
            peer=1000 * alone_s,
            ratio=alone_s / action_s,
            target=1 / MOST_ACTING_TIMES if device == "cpu" else None,
            most=None if device == "cpu" else MOST_ACTING_MS,
            target_of="ratio" if device == "cpu" else "value",
            note=f"trunk once alone {1000 * trunk_s:.1f} ms, candidates once alone {1000 * candidates_s:.1f} ms",
        )
    )
    return rows


def _alone(call: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own."""
    with mp.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def _share(name: str, m: Measurement, least: float | None) -> Row:
    """The rate beside that of the floor."""
    floor_s = m.flops / m.ceiling_flops_per_s
    note = f"batch {m.batch}; {m.flops / 1e9:.4g} GFLOP a step, floor {1000 * floor_s:.3g} ms at the ceiling of "
    note += f"{m.ceiling_flops_per_s / 1e9:.0f} GFLOP/s; took {1000 * m.step_s:.3g} ms"
    share = floor_s / m.step_s
    return Row(name=name, value=1 / m.step_s, unit="steps/s", peer=1 / floor_s, ratio=share, target=least, note=note)
