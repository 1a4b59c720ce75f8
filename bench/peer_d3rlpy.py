"""The peer's side of bench/lowdim.py and bench/parity.py: d3rlpy's CQL, run by an interpreter of its own.

Imports nothing of Switchyard. "block N": N updates on numbers without meaning, answered with their seconds, and of
those the seconds that drawing batches took. "learn DATA.npz UPDATES SEED OUT.npz": CQL on a dataset, with the
settings that its file tells and targets of drawn actions; the file that is written holds the policy's layers.
"""

import json
import os
import sys
import time
from typing import Any

answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # what the libraries print must not mix with the answers

import d3rlpy  # type: ignore[import-not-found]  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

OBSERVATION, ACTION, STEPS, BATCH, UNITS = 20, 6, 146_000, 3 * 128, [256, 256, 256]
SETTINGS = ("batch_size", "actor_lr", "target_update_rate", "conservative_weight")


def learner(
    batch_size: int, actor_lr: float = 1e-4, target_update_rate: float = 5e-3, conservative_weight: float = 1.0
) -> Any:
    """CQL(H) with a fixed weight of the conservative term beside half the squared Bellman error, as CDS has it
    (app. C.1)."""
    nets = d3rlpy.models.VectorEncoderFactory(hidden_units=UNITS)
    config = d3rlpy.algos.CQLConfig(
        batch_size=batch_size,
        actor_encoder_factory=nets,
        critic_encoder_factory=nets,
        alpha_learning_rate=0.0,
        alpha_threshold=0.0,
        conservative_weight=2 * conservative_weight,  # d3rlpy's error is the whole square
        actor_learning_rate=actor_lr,
        temp_learning_rate=actor_lr,
        tau=target_update_rate,
    )
    return config.create(device="cuda:0" if torch.cuda.is_available() else False)


def speed() -> tuple[Any, Any]:
    """A learner, and a dataset of numbers without meaning."""
    rng = np.random.default_rng(0)
    shapes = {"observations": OBSERVATION, "actions": ACTION}
    arrays = {name: rng.uniform(-1, 1, (STEPS, size)).astype(np.float32) for name, size in shapes.items()}
    ends = (np.arange(STEPS) % 100 == 99).astype(np.float32)
    rewards = rng.uniform(-1, 1, STEPS).astype(np.float32)
    data = d3rlpy.dataset.MDPDataset(**arrays, rewards=rewards, terminals=np.zeros(STEPS), timeouts=ends)
    algo = learner(BATCH)
    algo.build_with_dataset(data)
    return algo, data


def block(algo: Any, data: Any, updates: int) -> dict[str, float]:
    drawing = 0.0
    begin = time.perf_counter()
    for _ in range(updates):
        start = time.perf_counter()
        batch = data.sample_transition_batch(BATCH)
        drawing += time.perf_counter() - start
        algo.update(batch)
    return {"seconds": time.perf_counter() - begin, "drawing": drawing}


def learn(data: str, updates: int, seed: int, out: str) -> dict[str, float]:
    d3rlpy.seed(seed)
    arrays = dict(np.load(data))
    settings = {name: arrays.pop(name).item() for name in SETTINGS}
    dataset = d3rlpy.dataset.MDPDataset(**arrays)
    algo = learner(**settings)
    algo.build_with_dataset(dataset)
    _bootstrap_from_samples(algo.impl)
    begin = time.perf_counter()
    for _ in range(updates):
        algo.update(dataset.sample_transition_batch(settings["batch_size"]))
    layers = [layer for layer in algo.impl.policy.modules() if isinstance(layer, torch.nn.Linear)]
    weights: dict[str, Any] = {f"weight{k}": layer.weight.detach().cpu().numpy() for k, layer in enumerate(layers)}
    weights |= {f"bias{k}": layer.bias.detach().cpu().numpy() for k, layer in enumerate(layers)}
    np.savez(out, **weights)
    return {"seconds": time.perf_counter() - begin}


def _bootstrap_from_samples(impl: Any) -> None:
    """Targets without entropy, as d3rlpy's are, but of an action that the policy draws instead of its mean one."""

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def target(batch: Any) -> Any:
        action = impl.inner_sample_action(batch.next_observations)
        return impl._targ_q_func_forwarder.compute_target(batch.next_observations, action, reduction="min")

    impl.compute_target = target


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)


say({"version": d3rlpy.__version__})
made = None
for line in sys.stdin:
    what, *words = line.split()
    if what == "block":
        made = made or speed()
        say(block(*made, int(words[0])))
    else:
        say(learn(words[0], int(words[1]), int(words[2]), words[3]))
