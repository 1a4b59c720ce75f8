"""Which task an episode counts as (CDS, sec. 6): the one it was collected for, or another reading of the same file.

`directed`: the task whose goal is nearest to where the episode ends. `undirected`: any, in equal shares.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data.transitions import TransitionDataset
from sim.options import check_choice

ASSIGNMENTS = ("collected", "directed", "undirected")
UNDIRECTED_SEED = 0  # of the one shuffle of episodes that there is


def assign_tasks(dataset: TransitionDataset, assignment: str) -> TransitionDataset:
    """The dataset with that assignment of episodes to tasks; ValueError where its tasks have no goals to be near to."""
    check_choice("assignment", assignment, ASSIGNMENTS)
    benchmark, episode = dataset.benchmark, dataset.episode
    if assignment == "collected":
        return dataset
    if assignment == "directed":
        if benchmark.nearest_task is None:
            raise ValueError(f"assignment directed: tasks of {benchmark.name} have no goal that an episode ends near")
        ends = np.flatnonzero(dataset.columns["episode_end"])
        task = benchmark.nearest_task({name: values[ends] for name, values in dataset.quantities.items()})
    else:
        count = int(dataset.columns["episode_end"].sum())
        shuffled = np.random.default_rng(UNDIRECTED_SEED).permutation(count)
        task = np.empty(count, np.int64)
        task[shuffled] = np.arange(count) % len(benchmark.tasks)
    return dataclasses.replace(dataset, columns={**dataset.columns, "task": task[episode]})
