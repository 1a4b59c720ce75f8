"""Weights that the rules of a run on states give to its data, written at its end (data/weight_files.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from data.sharing import RULES
from data.transitions import TransitionDataset
from data.weight_files import WeightFile, write_weights
from train.seeding import MemberStream
from train.state_algorithm import StateAlgorithm

WEIGHED_ROWS, ROWS_AT_ONCE = 10_000, 250  # transitions of the dataset


def write_weights_of(algorithm: StateAlgorithm, dataset: TransitionDataset, device: torch.device, path: Path) -> None:
    """Write what an algorithm's rules that share by Q-values make of transitions from all over its dataset."""
    shared, config = algorithm.shared, algorithm.config
    members = config.members
    chosen = [k for k, (rule, _) in enumerate(members) if RULES[rule].uses_q]
    if not chosen:
        return
    row = np.unique(np.linspace(0, len(dataset) - 1, WEIGHED_ROWS).astype(np.int64))
    weight = np.empty((len(chosen), len(row), len(dataset.benchmark.tasks)), np.float16)
    parts = -(-len(row) // ROWS_AT_ONCE)
    for number in range(parts):  # each from all over the dataset: some rules weigh the rows of a batch together
        random = config.random(device, MemberStream.WEIGHTS, number)
        part = torch.from_numpy(row[number::parts]).to(device)
        found = shared.weights_of(part, algorithm.score, random, algorithm.updates)[chosen]
        weight[:, number::parts] = found.half().cpu().numpy()
    names = tuple(config.member_names[k] for k in chosen)
    rules = tuple(members[k][0] for k in chosen)
    file = WeightFile(
        row=row,
        weight=weight,
        members=names,
        rules=rules,
        assignment=config.assignment,
        dataset_digest=dataset.digest,
    )
    write_weights(path, file)
