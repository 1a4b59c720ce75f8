"""The peer's side of bench/lowdim.py: d3rlpy's CQL, run by an interpreter of its own.

Imports nothing of Switchyard. "block N" is answered with the seconds of N updates, and of those the seconds that
drawing batches took.
"""

import json
import os
import sys
import time
from typing import Any

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the libraries print must not mix with the answers

import d3rlpy  # type: ignore[import-not-found]  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

OBSERVATION, ACTION, STEPS, BATCH, UNITS = 20, 6, 146_000, 3 * 128, [256, 256, 256]


def learner(batch_size: int, conservative_weight: float) -> Any:
    """CQL(H) with a fixed weight of the conservative term, as CDS uses it."""
    nets = d3rlpy.models.VectorEncoderFactory(hidden_units=UNITS)
    options = {"alpha_learning_rate": 0.0, "alpha_threshold": 0.0, "conservative_weight": conservative_weight}
    config = d3rlpy.algos.CQLConfig(
        batch_size=batch_size, actor_encoder_factory=nets, critic_encoder_factory=nets, **options
    )
    return config.create(device="cuda:0" if torch.cuda.is_available() else False)


def say(told: dict[str, Any]) -> None:
    print(json.dumps(told), file=answers, flush=True)


def speed() -> None:
    rng = np.random.default_rng(0)
    shapes = {"observations": OBSERVATION, "actions": ACTION}
    arrays = {name: rng.uniform(-1, 1, (STEPS, size)).astype(np.float32) for name, size in shapes.items()}
    ends = (np.arange(STEPS) % 100 == 99).astype(np.float32)
    data = d3rlpy.dataset.MDPDataset(
        **arrays, rewards=rng.uniform(-1, 1, STEPS).astype(np.float32), terminals=np.zeros(STEPS), timeouts=ends
    )
    algo = learner(BATCH, 2.0)
    algo.build_with_dataset(data)
    say({"version": d3rlpy.__version__})
    for line in sys.stdin:
        drawing = 0.0
        begin = time.perf_counter()
        for _ in range(int(line.split()[1])):
            start = time.perf_counter()
            batch = data.sample_transition_batch(BATCH)
            drawing += time.perf_counter() - start
            algo.update(batch)
        say({"seconds": time.perf_counter() - begin, "drawing": drawing})


speed()
