"""`make bench-vision`: training step and action selection relative to their floors, on a CPU or a GPU.

The floor of a step is its FLOPs, counted by PyTorch forward and backward, at the FLOP rate of a large square matrix
product in the same precision and process. Every case runs in its own process, so that peak memory is its own. The
straightforward step does the same in float32 without optimisations: a map per candidate before the convolutions,
PyTorch's default memory format, averages weight by weight.
"""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from bench.report import Row
from bench.step import Case, Measurement, acting, measure
from sim.tasks import TASK_NAMES
from train.precision import resolve_precision
from train.qtopt_config import PRESETS, QTOptConfig

LEAST_SHARE = {"472": 0.35, "64": 0.45}
LEAST_TIMES_PLAIN = {"cpu": 3.0, "cuda": 4.0}
MOST_MEMORY_GIB = {"cpu": 10.0, "cuda": 12.0}
MOST_ACTING_TIMES = 1.3  # on a CPU, beside trunk and candidates alone
MOST_ROUTING_PERCENT = 10.0  # of a step
MOST_ACTING_MS = 4.0  # on a GPU
LEAST_SMALL_STEPS_PER_S = 300.0  # on a GPU
OTHER_WAYS = ("usual order", "compiled")
LABELS = {"32-true": "float32", "bf16-mixed": "bfloat16"}


def run(quick: bool) -> list[Row]:
    device, precision = "cuda" if torch.cuda.is_available() else "cpu", resolve_precision("auto")
    return [
        *_at_472(device, precision, quick),
        *_at_64(device, precision, quick),
        _acting(device, precision, quick),
    ]


def _large(states: int) -> QTOptConfig:
    """vision-472 with two transitions per task, one of them shared."""
    return replace(PRESETS["vision-472"], batch_size=states, tasks=TASK_NAMES[: min(states // 2, 8)])


def _at_472(device: str, precision: str, quick: bool) -> Iterator[Row]:
    config, times = _large(2 if quick else 4), 1 if quick else 3
    step = _alone(measure, Case(config=config, precision=precision, num_steps=times))
    yield _share(f"step at 472 px, {LABELS[precision]}", step, LEAST_SHARE["472"])
    plain = _alone(measure, Case(config=config, precision="32-true", num_steps=times, way="plain"))
    yield Row(
        name="  beside the straightforward step in float32",
        value=1 / step.step_s,
        unit="steps/s",
        peer=1 / plain.step_s,
        ratio=plain.step_s / step.step_s,
        target=LEAST_TIMES_PLAIN[device],
        note=f"{plain.flops / 1e9:.0f} GFLOP at {plain.flops / plain.step_s / 1e9:.0f} GFLOP/s",
    )
    if quick:
        return
    full = _alone(measure, Case(config=_large(32), precision=precision))
    note = f"batch {full.batch}; " + ("on the device" if device == "cuda" else "the whole process, with torch")
    most = MOST_MEMORY_GIB[device]
    yield Row(name="  memory at 472 px", value=full.peak_gib, unit="GiB", most=most, target_of="value", note=note)


def _at_64(device: str, precision: str, quick: bool) -> Iterator[Row]:
    states, times = (20, 2) if quick else (256, 30)
    preset = replace(PRESETS["vision-64"], batch_size=states)
    by_cem = replace(preset, behaviour_policy=False, cem_samples=64, cem_elites=6)
    case = Case(config=by_cem, precision=precision, num_steps=times)
    step = _alone(measure, case)
    yield _share(f"step at 64 px, 2 x 64 candidates, {LABELS[precision]}", step, LEAST_SHARE["64"])
    if device == "cuda":
        rate, wanted = 1 / step.step_s, LEAST_SMALL_STEPS_PER_S
        yield Row(name="  of it rate", value=rate, unit="steps/s", target=wanted, target_of="value")
    if not quick:
        yield from (_beside(way, case, step) for way in OTHER_WAYS)
    by_emaq = _alone(measure, replace(case, config=preset))
    yield _share(f"step at 64 px, 16 candidates of the behaviour policy, {LABELS[precision]}", by_emaq, None)
    for rule in ("cds-hard", "hipi"):
        routed = _alone(measure, Case(config=replace(preset, rule=rule), precision=precision, num_steps=times))
        yield Row(
            name=f"  of it routing by {rule}",
            value=100 * routed.routing,
            unit="% of a step",
            most=MOST_ROUTING_PERCENT,
            target_of="value",
        )


def _beside(way: str, case: Case, ours: Measurement) -> Row:
    """Alternative implementation of the step; no figures where it does not run, e.g. without a compiler."""
    name, our_rate = f"  the same step, {way}", 1 / ours.step_s
    try:
        rate = 1 / _alone(measure, replace(case, way=way)).step_s
    except Exception as error:
        return Row(name=name, value=None, unit="steps/s", peer=our_rate, note=f"{type(error).__name__}: not measured")
    return Row(name=name, value=rate, unit="steps/s", peer=our_rate, ratio=rate / our_rate, note="beside ours")


def _acting(device: str, precision: str, quick: bool) -> Row:
    action_s, trunk_s, candidates_s = _alone(acting, _large(2), precision, 3 if quick else 5)
    alone_s = trunk_s + candidates_s
    on_cpu = device == "cpu"
    return Row(
        name=f"an action at 472 px, 2 x 64 candidates, {LABELS[precision]}",
        value=1000 * action_s,
        unit="ms",
        peer=1000 * alone_s,
        ratio=alone_s / action_s,
        target=1 / MOST_ACTING_TIMES if on_cpu else None,
        most=None if on_cpu else MOST_ACTING_MS,
        target_of="ratio" if on_cpu else "value",
        note=f"trunk once alone {1000 * trunk_s:.1f} ms, candidates once alone {1000 * candidates_s:.1f} ms",
    )


def _alone(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a process of its own."""
    with mp.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def _share(name: str, m: Measurement, least: float | None) -> Row:
    """Row of a step's rate relative to its floor."""
    floor_s = m.flops / m.ceiling_flops_per_s
    note = f"batch {m.batch}; {m.flops / 1e9:.4g} GFLOP a step, floor {1000 * floor_s:.3g} ms at the ceiling of "
    note += f"{m.ceiling_flops_per_s / 1e9:.0f} GFLOP/s; took {1000 * m.step_s:.3g} ms"
    share = floor_s / m.step_s
    return Row(name=name, value=1 / m.step_s, unit="steps/s", peer=1 / floor_s, ratio=share, target=least, note=note)
