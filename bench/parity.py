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
from data.transitions import Transitions, read_transitions, write_transitions
from eval.returns import task_returns
from eval.tables import t_interval
from models.stacked import TanhGaussian, fold_normalisation
from sim.files import read_json
from train.cql_config import CQLConfig
from train.cql_run import EVALUATION_SEED, train

DATA = Path("datasets/walker2d.h5")  # make collect-walker2d
TASK, SEEDS, UPDATES, BATCH, EPISODES = "run-backward", (0, 1, 2), 5_000, 128, 10
SETTINGS: dict[str, Any] = {
    "policy_rate": 3e-4,  # 3 and 4 times those of CDS: much is learned in few updates
    "target_rate": 0.02,
    "conservative_weight": 5.0,  # CDS has 1.0, with which Q exceeds what can be earned and returns are a matter of luck
}


def run(quick: bool) -> list[Row]:
    if not DATA.is_file():
        print(f"no parity: {DATA} is missing; make collect-walker2d makes it")
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


def _of_task(transitions: Transitions) -> Transitions:
    """Its own steps."""
    mine = transitions.columns["task"] == transitions.body.task_names.index(TASK)
    columns = {name: column[mine] for name, column in transitions.columns.items()}
    return Transitions(body=transitions.body, columns=columns, about=transitions.about)


def _ours(data: Transitions, folder: Path, seeds: tuple[int, ...], updates: int, episodes: int) -> list[float]:
    write_transitions(folder / "data.h5", data)
    config = CQLConfig(
        data=str(folder / "data.h5"),
        out=str(folder / "run"),
        rules=("none",),
        seeds=seeds,
        steps=updates,
        per_task=BATCH,
        behaviour_steps=0,
        episodes=episodes,
        **SETTINGS,
    )
    return [float(np.mean(member["returns"][TASK])) for member in read_json(train(config))["members"]]


def _theirs(data: Transitions, folder: Path, seeds: tuple[int, ...], updates: int, episodes: int) -> list[float]:
    """Empty where the peer cannot be had."""
    peer = start_peer()
    if peer is None:
        return []
    body, (normalised, mean, std) = data.body, data.normalised()
    columns = normalised.columns
    np.savez(
        folder / "data.npz",
        observations=columns["observation"],
        actions=columns["action"],
        rewards=data.rewards[:, body.task_names.index(TASK)],
        terminals=columns["fell"].astype(np.float32),
        timeouts=(columns["last"] & ~columns["fell"]).astype(np.float32),
        batch_size=BATCH,
        **SETTINGS,
    )
    found = []
    for seed in seeds:
        out = folder / f"{seed}.npz"
        peer.ask(f"learn {folder / 'data.npz'} {updates} {seed} {out}")
        policy = fold_normalisation(_policy(np.load(out), data), torch.from_numpy(mean), torch.from_numpy(std))
        returns = task_returns(policy, 1, body, (TASK,), episodes, EVALUATION_SEED, told=False)
        found.append(float(returns.mean()))
        print(f"d3rlpy, seed {seed}: {found[-1]:.1f}", file=sys.stderr)
    peer.close()
    return found


def _policy(layers: Any, data: Transitions) -> TanhGaussian:
    """d3rlpy's: hidden layers, then one for the means and one for the logarithms of the deviations."""
    count = len(layers.files) // 2
    weights = [torch.from_numpy(layers[f"weight{k}"]).T for k in range(count)]
    biases = [torch.from_numpy(layers[f"bias{k}"])[None] for k in range(count)]
    weights[-2:], biases[-2:] = [torch.cat(weights[-2:], 1)], [torch.cat(biases[-2:], 1)]
    hidden = tuple(len(bias[0]) for bias in biases[:-1])
    policy = TanhGaussian(1, data.body.observation_size, hidden, data.body.action_size)
    policy.load_state_dict(
        {f"body.layers.{k}.weight": weight[None] for k, weight in enumerate(weights)}
        | {f"body.layers.{k}.bias": bias[None] for k, bias in enumerate(biases)}
    )
    return policy
