"""The peer's side of bench/lowdim.py and bench/parity.py: d3rlpy's algorithms, run by an interpreter of its own.

Imports nothing of Switchyard. "block ALGORITHM N": N updates on numbers without meaning, answered with their seconds,
and of those the seconds that drawing batches took. "learn ALGORITHM DATA.npz UPDATES SEED OUT.npz": an algorithm on a
dataset, with the settings that its file tells; the file that is written holds the policy's layers.
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

OBSERVATION, ACTION, STEPS, BATCH = 20, 6, 146_000, 3 * 128
UNITS = {"cql": [256, 256, 256], "td3-bc": [256, 256], "iql": [256, 256], "bc": [256, 256, 256]}


def learner(algorithm: str, batch_size: int, **settings: float) -> Any:
    """With the algorithm's defaults in Switchyard, which are those of the papers, where `settings` has no other."""
    nets, algos = d3rlpy.models.VectorEncoderFactory(hidden_units=UNITS[algorithm]), d3rlpy.algos
    both = {"batch_size": batch_size, "actor_encoder_factory": nets, "critic_encoder_factory": nets}
    actor_lr = settings.get("actor_lr", 1e-4 if algorithm == "cql" else 3e-4)
    rates = {"actor_learning_rate": actor_lr, "tau": settings.get("target_update_rate", 5e-3)}
    if algorithm == "cql":  # a fixed weight of the conservative term beside half the squared error (CDS, app. C.1)
        config = algos.CQLConfig(
            **both,
            **rates,
            alpha_learning_rate=0.0,
            alpha_threshold=0.0,
            conservative_weight=2 * settings.get("conservative_weight", 1.0),  # d3rlpy's error is the whole square
            temp_learning_rate=actor_lr,
        )
    elif algorithm == "td3-bc":
        config = algos.TD3PlusBCConfig(**both, **rates, alpha=2.5)
    elif algorithm == "iql":
        config = algos.IQLConfig(**both, **rates, value_encoder_factory=nets, expectile=0.7, weight_temp=3.0)
    else:
        config = algos.BCConfig(batch_size=batch_size, encoder_factory=nets, learning_rate=settings.get("lr", 3e-4))
    return config.create(device="cuda:0" if torch.cuda.is_available() else False)


def speed(algorithm: str) -> tuple[Any, Any]:
    """A learner, and a dataset of numbers without meaning."""
    rng = np.random.default_rng(0)
    shapes = {"observations": OBSERVATION, "actions": ACTION}
    arrays = {name: rng.uniform(-1, 1, (STEPS, size)).astype(np.float32) for name, size in shapes.items()}
    ends = (np.arange(STEPS) % 100 == 99).astype(np.float32)
    rewards = rng.uniform(-1, 1, STEPS).astype(np.float32)
    data = d3rlpy.dataset.MDPDataset(**arrays, rewards=rewards, terminals=np.zeros(STEPS), timeouts=ends)
    algo = learner(algorithm, BATCH)
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


def learn(algorithm: str, data: str, updates: int, seed: int, out: str) -> dict[str, float]:
    d3rlpy.seed(seed)
    arrays = dict(np.load(data))
    settings = json.loads(str(arrays.pop("settings")))
    dataset = d3rlpy.dataset.MDPDataset(**arrays)
    algo = learner(algorithm, **settings)
    algo.build_with_dataset(dataset)
    if algorithm == "cql":
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
made: dict[str, Any] = {}
for line in sys.stdin:
    what, name, *words = line.split()
    if what == "block":
        made[name] = made.get(name) or speed(name)
        algo, data = made[name]
        say(block(algo, data, int(words[0])))
    else:
        say(learn(name, words[0], int(words[1]), int(words[2]), words[3]))
