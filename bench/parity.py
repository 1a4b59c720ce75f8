"""`python -m bench --only parity`: CQL of one task of walker2d, ours and d3rlpy's, by the returns of what they learn.

Both learn from the same steps, normalised, with the same sizes, weights, rates and number of updates; then the mean
actions of their policies play the same episodes. Each has some seeds; the intervals are Student's over them. Both
bootstrap from an action that the policy draws at s', as CQL's authors do; d3rlpy by itself takes the mean action, with
which Q overestimates more (docs/results/sharing-walker2d.md). What differs: our critic's gradient is estimated by 2 of
the 30 sampled actions and our middle layers may be bfloat16, as by default.
"""

from __future__ import annotations

import sys
import tempfile
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
from models.state_policies import StatePolicy, TanhGaussianPolicy
from sim.files import read_json
from train.cql import CQLConfig
from train.state_run import train

DATA = Path("datasets/walker2d-published.h5")  # make collect-state
TASK, SEEDS, UPDATES, BATCH, EPISODES = "run-backward", (0, 1, 2), 5_000, 128, 10
SETTINGS: dict[str, Any] = {
    "actor_lr": 3e-4,  # 3 and 4 times those of CDS: much is learned in few updates
    "target_update_rate": 0.02,
    "conservative_weight": 5.0,  # 10 in d3rlpy's units; with 1.0 Q exceeds what can be earned, returns are by chance
}


def run(quick: bool) -> list[Row]:
    if not DATA.is_file():
        print(f"no parity: {DATA} is missing; make collect-state makes it")
        return []
    seeds, updates, episodes = (SEEDS[:2], 3, 1) if quick else (SEEDS, UPDATES, EPISODES)
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), _of_task(read_transitions(DATA))
        ours = _ours(data, folder, seeds, updates, episodes)
        theirs = _theirs(data, folder, seeds, updates, episodes)
    mean, half = t_interval(ours)
    note = f"{len(seeds)} seeds, {updates} updates of {BATCH}; ours {mean:.0f} ± {half:.0f}"
    if theirs:
        other, other_half = t_interval(theirs)
        note += f", d3rlpy's {other:.0f} ± {other_half:.0f}"
    peer = float(np.mean(theirs)) if theirs else None
    return [Row(name=f"return of CQL, {TASK}", value=mean, unit="return", peer=peer, note=note)]


def _of_task(dataset: TransitionDataset) -> TransitionDataset:
    """The task's own transitions."""
    return dataset.select(dataset.columns["task"] == dataset.benchmark.task_index(TASK))


def _ours(data: TransitionDataset, folder: Path, seeds: tuple[int, ...], updates: int, episodes: int) -> list[float]:
    write_transitions(folder / "data.h5", data)
    config = CQLConfig(
        data=str(folder / "data.h5"),
        out=str(folder / "run"),
        rules=("none",),
        seeds=seeds,
        steps=updates,
        per_task=BATCH,
        divergence_steps=0,
        episodes=episodes,
        **SETTINGS,
    )
    return [float(np.mean(member["returns"][TASK])) for member in read_json(train("cql", config))["members"]]


def _theirs(data: TransitionDataset, folder: Path, seeds: tuple[int, ...], updates: int, episodes: int) -> list[float]:
    """Empty where the peer cannot be had."""
    peer = start_peer()
    if peer is None:
        return []
    mean, std = data.observation_statistics
    columns = data.normalise(mean, std).columns
    np.savez(
        folder / "data.npz",
        observations=columns["observation"],
        actions=columns["action"],
        rewards=data.rewards[:, data.benchmark.task_index(TASK)],
        terminals=columns["terminated"].astype(np.float32),
        timeouts=(columns["episode_end"] & ~columns["terminated"]).astype(np.float32),
        batch_size=BATCH,
        **SETTINGS,
    )
    found = []
    for seed in seeds:
        out = folder / f"{seed}.npz"
        peer.ask(f"learn {folder / 'data.npz'} {updates} {seed} {out}")
        policy = _policy(np.load(out), data, Normaliser(mean, std))
        file = PolicyFile(
            policy=policy, benchmark=data.benchmark, members=(Member(name="d3rlpy", tasks=(TASK,)),), metadata={}
        )
        (row,) = evaluate(file, episodes, EVALUATION_SEED).members
        found.append(float(np.mean(row["returns"][TASK])))
        print(f"d3rlpy, seed {seed}: {found[-1]:.1f}", file=sys.stderr)
    peer.close()
    return found


def _policy(layers: Any, data: TransitionDataset, normaliser: Normaliser) -> StatePolicy:
    """d3rlpy's: hidden layers, then one for the means and one for the logarithms of the deviations."""
    count, benchmark = len(layers.files) // 2, data.benchmark
    weights = [torch.from_numpy(layers[f"weight{k}"]).T for k in range(count)]
    biases = [torch.from_numpy(layers[f"bias{k}"])[None] for k in range(count)]
    weights[-2:], biases[-2:] = [torch.cat(weights[-2:], 1)], [torch.cat(biases[-2:], 1)]
    hidden_sizes = tuple(len(bias[0]) for bias in biases[:-1])
    network = TanhGaussianPolicy(1, benchmark.observation_size, hidden_sizes, benchmark.action_size)
    network.load_state_dict(
        {f"mlp.layers.{k}.weight": weight[None] for k, weight in enumerate(weights)}
        | {f"mlp.layers.{k}.bias": bias[None] for k, bias in enumerate(biases)}
    )
    return StatePolicy(normaliser, Unconditioned(1, benchmark.observation_size, len(benchmark.tasks)), network)
