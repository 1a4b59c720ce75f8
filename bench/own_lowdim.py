"""Our side of bench/lowdim.py: updates of an algorithm on states, run in a process of its own.

Usage: own_lowdim ALGORITHM RULE SEEDS. "block N" is answered with the seconds of N updates, drawing their batches
included, and of those the seconds that routing took."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

import numpy as np
import torch

from bench.step import wait
from data.transitions import TransitionDataset, empty_columns, tables
from sim.benchmarks.table import BENCHMARKS
from train.precision import resolve_precision
from train.process_settings import prepare_process
from train.state_run import ALGORITHMS, build

STEPS = 146_000  # of walker2d's row in CDS (table 3)


def synthetic(steps: int) -> TransitionDataset:
    """Random transitions, equally many of each task, in episodes of 100."""
    benchmark, rng = BENCHMARKS["walker2d"], np.random.default_rng(0)
    columns = empty_columns(benchmark, steps)
    for name, (kind, _) in tables(benchmark).items():
        if kind is np.float32:
            columns[name][:] = rng.uniform(-1, 1, columns[name].shape)
    columns["task"][:] = np.arange(steps) * len(benchmark.tasks) // steps
    columns["episode_end"][99::100] = columns["episode_end"][-1] = True
    return TransitionDataset(benchmark=benchmark, columns=columns, metadata={})


def main(name: str, rule: str, seeds: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fast = resolve_precision("auto") == "bf16-mixed"
    torch.manual_seed(0)
    prepare_process()
    settled: dict[str, Any] = {"bc_steps": 0, "warm_start_steps": 0, "share_after": 0} if name == "brac" else {}
    config = ALGORITHMS[name].config(rules=(rule,), seeds=tuple(range(seeds)), **settled)
    algorithm = build(name, config, synthetic(STEPS)).to(device)
    algorithm.shared.start(device)
    routing_s, weigh = [0.0], algorithm.shared.weigh

    def timed(*given: Any) -> torch.Tensor:
        wait()
        begin = time.perf_counter()
        weight = weigh(*given)
        wait()
        routing_s[0] += time.perf_counter() - begin
        return weight

    algorithm.shared.weigh = timed  # type: ignore[method-assign, assignment]
    print(json.dumps({"precision": "bfloat16" if fast else "float32", "device": device}), flush=True)
    for line in sys.stdin:
        routing_s[0] = 0.0
        begin = time.perf_counter()
        for _ in range(int(line.split()[1])):
            with torch.autocast(device, torch.bfloat16) if fast else contextlib.nullcontext():
                algorithm.update()
        wait()
        print(json.dumps({"seconds": time.perf_counter() - begin, "routing": routing_s[0]}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
