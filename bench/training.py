"""The training step beside the matrix-product ceiling: the small network at 64 px and QT-Opt's at 472 px.

The matrix products and convolutions of a step (bench/step.py) are counted, forward and backward; the ceiling is the
rate of a large square matrix product in the same precision and the same process. The floor of a step is the counted
operations at that rate. Every case runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Iterator
from dataclasses import replace

from bench.report import Row
from bench.step import Case, Measurement, measure
from sim.tasks import TASK_NAMES
from train.config import PRESETS
from train.run import resolve_precision

LEAST_STEPS_PER_S = 10.0  # of the small network, on CPUs with bfloat16 units


def run(quick: bool) -> list[Row]:
    auto = resolve_precision("auto")
    rows: list[Row] = []
    for case in _cases(quick, auto):
        print(f"bench: {case.name} ...", flush=True)
        with mp.get_context("spawn").Pool(1) as pool:
            rows += _rows(case, pool.apply(measure, (case,)))
    if auto != "bf16-mixed":
        print("bfloat16 is not faster than float32 on this CPU: no bfloat16 rows, and no target for the small network")
    return rows


def _cases(quick: bool, auto: str) -> Iterator[Case]:
    small = replace(PRESETS["vision-64"], batch_size=192, lagged_target_steps=0)
    demo = replace(PRESETS["demo"], batch_size=192)
    batch = 1 if quick else 4
    large = replace(PRESETS["vision-472"], batch_size=batch, tasks=TASK_NAMES[:batch])
    for precision in dict.fromkeys(("32-true", auto)):
        label = {"32-true": "float32", "bf16-mixed": "bfloat16"}[precision]
        target = LEAST_STEPS_PER_S if precision == "bf16-mixed" else None
        for name, config in (("vision-64", small), ("demo", demo)):
            count = 2 if quick else 40
            title = f"step {name} {label}"
            yield Case(name=title, config=config, precision=precision, num_steps=count, target_steps_per_s=target)
        yield Case(name=f"step vision-472 {label}", config=large, precision=precision, num_steps=1 if quick else 3)


def _rows(case: Case, m: Measurement) -> list[Row]:
    floor_s = m.flops_per_step / m.ceiling_flops_per_s
    share = floor_s / m.step_s
    note = f"batch {m.batch}; floor {1000 * floor_s:.3g} ms at the measured ceiling of "
    note += f"{m.ceiling_flops_per_s / 1e9:.0f} GFLOP/s; {m.flops_per_step / 1e9:.4g} GFLOP a step at "
    note += f"{m.flops_per_step / m.step_s / 1e9:.0f} GFLOP/s, {share:.0%} of the ceiling"
    rate = Row(
        name=case.name,
        value=1 / m.step_s,
        unit="steps/s",
        target=case.target_steps_per_s,
        target_of="value",
        peer=1 / floor_s,
        ratio=share,
        note=note,
    )
    time_per_step = Row(name="  of it time", value=1000 * m.step_s, unit="ms/step", peer=1000 * floor_s, ratio=share)
    memory = Row(name="  of it peak memory", value=m.peak_gib, unit="GiB", note="of the whole process, with torch")
    return [rate, time_per_step, memory]
