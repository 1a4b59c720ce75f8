"""Episodes per second of `data.collect` with one and with two worker processes, at 64 px.

Start-up (interpreters, imports, the first world) is excluded by difference: a long and a short collection are timed
with the same number of workers, and the rate is that of the additional episodes. If the long one takes less than twice
the time of the short one, start-up dominates and no figure is given. The same seed gives the same episodes with any
number of workers, so both rates are of the same work.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

from bench.report import Row
from data.collect import collect
from data.plan import CollectConfig

SIZE_PX = 64
NUM_WORKERS = 2
LEAST_RATIO = 1.7
EPISODES_PER_SHARD = 10  # every worker has a whole number of shards, so that none idles at the end


def run(quick: bool) -> list[Row]:
    episodes, num_rounds, per_shard = (8, 1, 2) if quick else (120, 3, EPISODES_PER_SHARD)
    single, double = [], []
    for _ in range(num_rounds):  # side by side, so that a busy moment hits both
        one, two = (_episodes_per_s(workers, episodes, per_shard) for workers in (1, NUM_WORKERS))
        if one is not None and two is not None:
            single.append(one)
            double.append(two)
    names = [f"collecting {SIZE_PX} px, workers: {workers}" for workers in (1, NUM_WORKERS)]
    if not single:
        note = f"no figure: {episodes} episodes are too few to separate from start-up"
        return [Row(name=name, value=None, unit="episodes/s", note=note) for name in names]
    ratios = [two / one for one, two in zip(single, double, strict=True)]
    rate = statistics.median(single)
    note = f"{len(ratios)} rounds of {episodes} episodes, ratios {min(ratios):.2f} to {max(ratios):.2f}"
    note += f"; floor {1000 / NUM_WORKERS / rate:.3g} ms an episode ({NUM_WORKERS} times one worker)"
    enough_cores = len(os.sched_getaffinity(0)) >= NUM_WORKERS
    if not enough_cores:
        note += f"; the target is for {NUM_WORKERS} cores"
    return [
        Row(name=names[0], value=rate, unit="episodes/s", note="start-up excluded"),
        Row(
            name=names[1],
            value=statistics.median(double),
            unit="episodes/s",
            target=LEAST_RATIO if enough_cores else None,
            peer=rate,
            ratio=statistics.median(ratios),
            note=note,
        ),
    ]


def _episodes_per_s(workers: int, episodes: int, per_shard: int) -> float | None:
    """Rate over the episodes beyond one shard for each worker."""
    first = workers * per_shard
    assert episodes > first
    short_s = _collect_s(workers, first, per_shard)
    long_s = _collect_s(workers, episodes, per_shard)
    return (episodes - first) / (long_s - short_s) if long_s > 2 * short_s else None


def _collect_s(workers: int, episodes: int, per_shard: int) -> float:
    with tempfile.TemporaryDirectory(prefix="switchyard-bench-") as folder:
        config = CollectConfig(
            out=str(Path(folder) / "data"),
            episodes=episodes,
            size=SIZE_PX,
            workers=workers,
            renderer="tiny",
            episodes_per_shard=per_shard,
        )
        begin = time.perf_counter()
        collect(config)
        return time.perf_counter() - begin
