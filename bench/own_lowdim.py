"""Our side of bench/lowdim.py: CQL's updates on states, run in a process of its own.

Usage: own_lowdim RULE SEEDS. "block N" is answered with the seconds of N updates, drawing their batches included, and
of those the seconds that routing took."""

from __future__ import annotations

import contextlib
import json
import sys
import time

import numpy as np
import torch

from bench.step import TimedRouting, wait
from data.transitions import COLUMNS, Transitions
from sim.locomotion import BODIES
from train.cql import CQL
from train.cql_config import CQLConfig
from train.precision import resolve_precision
from train.process_settings import prepare_process

STEPS = 146_000  # of walker2d's row in CDS (table 3)


def synthetic(steps: int) -> Transitions:
    """Steps of no meaning, as many of each task, in episodes of 100."""
    body, rng = BODIES["walker2d"], np.random.default_rng(0)
    columns = Transitions.empty(body, steps)
    for name, kind in COLUMNS.items():
        if kind is np.float32:
            columns[name][:] = rng.uniform(-1, 1, columns[name].shape)
    columns["task"][:] = np.arange(steps) * len(body.tasks) // steps
    columns["last"][99::100] = columns["last"][-1] = True
    return Transitions(body=body, columns=columns, about={})


class Updates(TimedRouting, CQL):
    """The module without a trainer."""

    def start(self, device: str) -> None:
        self.to(device)
        self.setup("fit")
        made = self.configure_optimizers()
        self.optimizers = lambda: made  # type: ignore[method-assign, assignment, return-value]
        self.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign, assignment]


def main(rule: str, seeds: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fast = resolve_precision("auto") == "bf16-mixed"
    torch.manual_seed(0)
    prepare_process()
    module = Updates(CQLConfig(rules=(rule,), seeds=tuple(range(seeds))), synthetic(STEPS))
    module.start(device)
    print(json.dumps({"precision": "bfloat16" if fast else "float32", "device": device}), flush=True)
    for line in sys.stdin:
        module.routing_s = 0.0
        begin = time.perf_counter()
        for _ in range(int(line.split()[1])):
            with torch.autocast(device, torch.bfloat16) if fast else contextlib.nullcontext():
                module.update()
        wait()
        told = {"seconds": time.perf_counter() - begin, "routing": module.routing_s}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
