"""The state benchmarks by name."""

from __future__ import annotations

from sim.benchmarks.locomotion import ANT, HALFCHEETAH, WALKER2D
from sim.benchmarks.spec import Benchmark
from sim.options import check_choice

BENCHMARKS: dict[str, Benchmark] = {record.name: record for record in (WALKER2D, HALFCHEETAH, ANT)}


def benchmark_by_name(name: str) -> Benchmark:
    """ValueError with the nearest name for one that does not exist."""
    return BENCHMARKS[check_choice("benchmark", name, tuple(BENCHMARKS))]
