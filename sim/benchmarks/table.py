"""The state benchmarks by name."""

from __future__ import annotations

from sim.benchmarks.ant_maze import ANT_DIRECTION, ANT_LARGE, ANT_MEDIUM
from sim.benchmarks.desk import DESK
from sim.benchmarks.dmc_walker import DMC_WALKER
from sim.benchmarks.locomotion import ANT, HALFCHEETAH, WALKER2D
from sim.benchmarks.mazes import POINT_LARGE, POINT_MEDIUM
from sim.benchmarks.spec import Benchmark
from sim.options import check_choice

_LOCOMOTION = (WALKER2D, HALFCHEETAH, ANT)
_MAZES = (POINT_MEDIUM, POINT_LARGE, ANT_MEDIUM, ANT_LARGE, ANT_DIRECTION)
_RECORDS = (*_LOCOMOTION, DMC_WALKER, *_MAZES, DESK)
BENCHMARKS: dict[str, Benchmark] = {record.name: record for record in _RECORDS}


def benchmark_by_name(name: str) -> Benchmark:
    """ValueError with the nearest name for one that does not exist."""
    return BENCHMARKS[check_choice("benchmark", name, tuple(BENCHMARKS))]
