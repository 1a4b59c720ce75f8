"""The state benchmarks: success of their controllers, environment steps beside the packages they are made after, and
what it takes to open a million transitions of seven tasks.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.report import Row
from data.transitions import TransitionDataset, empty_columns, write_transitions
from eval.behaviour import behaviour_of
from eval.intervals import wilson
from eval.returns import evaluate_behaviour
from sim.benchmarks.spec import StateEnv
from sim.benchmarks.table import benchmark_by_name

SEED = 7
ANT = "models/trained/ant-direction.pt"
CONTROLLERS = {  # benchmark -> policies, noise, episodes of a task, least success (%)
    "desk": ("controller", 0.0, 200, 98.0),
    "pointmaze-medium": ("controller", 0.2, 50, 98.0),
    "pointmaze-large": ("controller", 0.2, 50, 98.0),
    "antmaze-medium": (ANT, 0.2, 50, 85.0),
    "antmaze-large": (ANT, 0.2, 50, 85.0),
}
LEAST_TIMES = {"desk": 2.0, "dmc-walker": 1.3}
MOST_SECONDS, MOST_MB = 5.0, 600.0


def run(quick: bool) -> list[Row]:
    rows = [row for name in CONTROLLERS for row in _controllers(name, quick)]
    rows += [_speed("desk", _meta_world, quick), _speed("dmc-walker", _dm_control, quick)]
    return [*rows, *_opening(10_000 if quick else 1_000_000)]


def _controllers(name: str, quick: bool) -> list[Row]:
    policy, noise, episodes, least = CONTROLLERS[name]
    episodes = 2 if quick else episodes
    behaviour = behaviour_of(benchmark_by_name(name), policy, noise)
    (row,) = evaluate_behaviour(behaviour, episodes, SEED, len(os.sched_getaffinity(0))).members
    rows = []
    for task, successes in row["success"].items():
        low, high = wilson(sum(successes), len(successes))
        note = f"{episodes} episodes, seed {SEED}, noise {noise:g}, 95% interval {100 * low:.1f}-{100 * high:.1f}"
        if name == "desk":
            note += f"; {100 * np.mean(row['success_at_end'][task]):.1f}% at the end"
        value = 100 * float(np.mean(successes))
        label = f"controller: {name} {task}"
        rows.append(Row(name=label, value=value, unit="% success", target=least, target_of="value", note=note))
    return rows


def _speed(
    name: str, peer: Callable[[], tuple[str, Callable[[np.ndarray], object], Callable[[], object]]], quick: bool
) -> Row:
    """Random actions, resets counted, of one episode of each side in turns."""
    benchmark, pairs = benchmark_by_name(name), 1 if quick else 15
    env: StateEnv = benchmark.make_env()
    task = benchmark.task_names[0]
    label, step, reset = peer()
    actions = np.random.default_rng(0).uniform(-1, 1, (benchmark.horizon, benchmark.action_size)).astype(np.float32)
    ours, theirs = [], []
    for _ in range(pairs):
        ours.append(_rate(lambda: env.reset(task), env.step, actions))
        theirs.append(_rate(reset, step, actions))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Row(
        name=f"steps of {name}",
        value=statistics.median(ours),
        unit="steps/CPU-s",
        target=LEAST_TIMES[name],
        peer=statistics.median(theirs),
        ratio=statistics.median(ratios),
        note=f"beside {label}; {pairs} pairs, ratios {min(ratios):.2f} to {max(ratios):.2f}",
    )


def _rate(reset: Callable[[], object], step: Callable[[np.ndarray], object], actions: np.ndarray) -> float:
    begun = time.process_time()
    reset()
    for action in actions:
        step(action)
    return len(actions) / (time.process_time() - begun)


def _meta_world() -> tuple[str, Callable[[np.ndarray], object], Callable[[], object]]:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    env = ALL_V3_ENVIRONMENTS["door-open-v3"]()
    env._freeze_rand_vec, env._set_task_called = False, True
    return "Meta-World's door-open", env.step, env.reset


def _dm_control() -> tuple[str, Callable[[np.ndarray], object], Callable[[], object]]:
    from dm_control import suite

    env = suite.load("walker", "walk")
    return "dm_control's walker", env.step, env.reset


OPEN = """
import sys, time
import torch
from pathlib import Path
from data.transitions import read_transitions
from data.state_batches import TransitionTensors

def most_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

before, begun = most_mb(), time.perf_counter()
tensors = TransitionTensors(read_transitions(sys.argv[1]))
print(time.perf_counter() - begun, most_mb() - before)
"""


def _opening(steps: int) -> list[Row]:
    """A file of antmaze-large, opened by a process of its own, until its tensors can be sampled."""
    benchmark = benchmark_by_name("antmaze-large")
    columns, rng = empty_columns(benchmark, steps), np.random.default_rng(0)
    for name, column in columns.items():
        if column.dtype == np.float32:
            columns[name] = rng.standard_normal(column.shape, np.float32)
    columns["episode_end"][999::1000] = True
    columns["task"][:] = np.arange(steps) // 1000 % len(benchmark.tasks)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.h5"
        write_transitions(path, TransitionDataset(benchmark=benchmark, columns=columns, metadata={}))
        del columns
        done = subprocess.run([sys.executable, "-c", OPEN, str(path)], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    name, note = f"open {steps:,} transitions of 7 tasks", "read, checked, on the device"
    return [
        Row(name=name, value=seconds, unit="s", most=MOST_SECONDS, target_of="value", note=note),
        Row(name="  memory", value=megabytes, unit="MB", most=MOST_MB, target_of="value", note="above an idle process"),
    ]
