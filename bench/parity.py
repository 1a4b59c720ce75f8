"""`python -m bench --only parity`: algorithms on one task of walker2d, ours and d3rlpy's, by the returns of what they
learn.

Both learn from the same steps, normalised, with the same sizes, weights, rates and number of updates; then the mean
actions of their policies play the same episodes. Each has some seeds; the intervals are Student's over them. What
differs: our middle layers may be bfloat16, as by default; our BC maximises the likelihood of a tanh-Gaussian, d3rlpy's
minimises the squared error; d3rlpy's IQL learns V and Q by one step and begins with another std. For CQL both bootstrap
from an action that the policy draws at s', as CQL's authors do (d3rlpy by itself takes the mean action, with which Q
overestimates more, docs/results/parity.md), and our critic's gradient is estimated by 2 of the 30 sampled actions.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.lowdim import start_peer
from bench.report import Row
from data.transitions import TransitionDataset, read_transitions, write_transitions
from eval.intervals import t_interval
from eval.returns import EVALUATION_SEED, evaluate
from models.conditioning import Normaliser, Unconditioned
from models.policy_files import Member, PolicyFile
from models.state_policies import DeterministicPolicy, StatePolicy
from sim.files import read_json
from train.state_run import ALGORITHMS, train

DATA = Path("datasets/walker2d-published.h5")  # make collect-state
TASK, SEEDS, EPISODES = "run-backward", (0, 1, 2), 10


@dataclass(frozen=True)
class Case:
    """An algorithm, updates of both sides and transitions of each, and options that differ from our defaults."""

    updates: int
    batch_size: int
    settings: dict[str, Any]


CASES = {
    "cql": Case(
        5_000,
        128,
        {
            "actor_lr": 3e-4,  # 3 and 4 times those of CDS: much is learned in few updates
            "target_update_rate": 0.02,
            "conservative_weight": 5.0,  # 10 in d3rlpy's units; with 1.0 Q exceeds what can be earned
        },
    ),
    "td3-bc": Case(10_000, 256, {}),
    "iql": Case(10_000, 256, {}),
    "bc": Case(5_000, 256, {}),
}


def run(quick: bool) -> list[Row]:
    if not DATA.is_file():
        print(f"no parity: {DATA} is missing; make collect-state makes it")
        return []
    data = _of_task(read_transitions(DATA))
    return [_row(name, data, quick) for name in CASES]


def _row(name: str, data: TransitionDataset, quick: bool) -> Row:
    seeds, updates, episodes = (SEEDS[:2], 3, 1) if quick else (SEEDS, CASES[name].updates, EPISODES)
    with tempfile.TemporaryDirectory() as folder:
        ours = _ours(name, data, Path(folder), seeds, updates, episodes)
        theirs = _theirs(name, data, Path(folder), seeds, updates, episodes)
    mean, half = t_interval(ours)
    note = f"{len(seeds)} seeds, {updates} updates of {CASES[name].batch_size}; ours {mean:.0f} ± {half:.0f}"
    if theirs:
        other, other_half = t_interval(theirs)
        note += f", d3rlpy's {other:.0f} ± {other_half:.0f}"
    peer = float(np.mean(theirs)) if theirs else None
    return Row(name=f"return of {name}, {TASK}", value=mean, unit="return", peer=peer, note=note)


def _of_task(dataset: TransitionDataset) -> TransitionDataset:
    """The task's own transitions."""
    return dataset.select(dataset.columns["task"] == dataset.benchmark.task_index(TASK))


def _ours(
    name: str, data: TransitionDataset, folder: Path, seeds: tuple[int, ...], updates: int, episodes: int
) -> list[float]:
    write_transitions(folder / "data.h5", data)
    case = CASES[name]
    config = ALGORITHMS[name].config(
        data=str(folder / "data.h5"),
        out=str(folder / "run"),
        rules=("none",),
        seeds=seeds,
        steps=updates,
        per_task=case.batch_size,
        divergence_steps=0,
        episodes=episodes,
        **case.settings,
    )
    return [float(np.mean(member["returns"][TASK])) for member in read_json(train(name, config))["members"]]


def _theirs(
    name: str, data: TransitionDataset, folder: Path, seeds: tuple[int, ...], updates: int, episodes: int
) -> list[float]:
    """Empty where the peer cannot be had."""
    peer = start_peer()
    if peer is None:
        return []
    case, (mean, std) = CASES[name], data.observation_statistics
    columns = data.normalise(mean, std).columns
    np.savez(
        folder / "data.npz",
        observations=columns["observation"],
        actions=columns["action"],
        rewards=data.rewards[:, data.benchmark.task_index(TASK)],
        terminals=columns["terminated"].astype(np.float32),
        timeouts=(columns["episode_end"] & ~columns["terminated"]).astype(np.float32),
        settings=json.dumps({"batch_size": case.batch_size, **case.settings}),
    )
    found = []
    for seed in seeds:
        out = folder / f"{seed}.npz"
        peer.ask(f"learn {name} {folder / 'data.npz'} {updates} {seed} {out}")
        policy = _policy(np.load(out), data, Normaliser(mean, std))
        file = PolicyFile(
            policy=policy, benchmark=data.benchmark, members=(Member(name="d3rlpy", tasks=(TASK,)),), metadata={}
        )
        (row,) = evaluate(file, episodes, EVALUATION_SEED).members
        found.append(float(np.mean(row["returns"][TASK])))
        print(f"d3rlpy's {name}, seed {seed}: {found[-1]:.1f}", file=sys.stderr)
    peer.close()
    return found


def _policy(layers: Any, data: TransitionDataset, normaliser: Normaliser) -> StatePolicy:
    """d3rlpy's, by its mean actions: hidden layers, then one for the means; CQL's deviations follow."""
    benchmark = data.benchmark
    biases = [torch.from_numpy(layers[f"bias{k}"])[None] for k in range(len(layers.files) // 2)]
    weights = [torch.from_numpy(layers[f"weight{k}"]).T for k in range(len(biases))]
    last = next(k for k, bias in enumerate(biases) if bias.shape[1] == benchmark.action_size)
    hidden_sizes = tuple(bias.shape[1] for bias in biases[:last])
    network = DeterministicPolicy(1, benchmark.observation_size, hidden_sizes, benchmark.action_size)
    network.load_state_dict(
        {f"mlp.layers.{k}.weight": weights[k][None] for k in range(last + 1)}
        | {f"mlp.layers.{k}.bias": biases[k][None] for k in range(last + 1)}
    )
    return StatePolicy(normaliser, Unconditioned(1, benchmark.observation_size, len(benchmark.tasks)), network)
