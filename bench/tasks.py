"""Success of the scripted policies on every task, everything randomised: can it be done, and how hard is it?"""

from __future__ import annotations

import os

import numpy as np

from bench.report import Row
from eval.rollout import episode_jobs, rollout, wilson
from sim.tasks import TASK_NAMES, TASKS

SEED = 7
SIZE_PX = 64  # of pictures that these policies do not look at
LEAST_EXPERT = 95.0
CRUDE_RANGES = {"lift": (30.0, 50.0), "place": (70.0, 90.0)}


def run(quick: bool) -> list[Row]:
    count = 4 if quick else 200
    rows = []
    for split in ("train", "test"):
        won = _play("scripted", split, count)
        rows += [_row(f"expert, {split} split: {task}", won[task], LEAST_EXPERT) for task in TASK_NAMES]
    crude = _play("crude", "train", count)
    for skill, (least, most) in CRUDE_RANGES.items():
        pooled = [success for task in TASK_NAMES if TASKS[task].skill == skill for success in crude[task]]
        rows.append(_row(f"crude policy at noise 1: {skill}s", pooled, least, most))
    return rows


def _row(name: str, won: list[bool], least: float, most: float | None = None) -> Row:
    low, high = wilson(sum(won), len(won))
    return Row(
        name=name,
        value=100 * float(np.mean(won)),
        unit="% success",
        target=least,
        most=most,
        target_of="value",
        note=f"{len(won)} episodes, seed {SEED}, 95% interval {100 * low:.1f}-{100 * high:.1f}",
    )


def _play(policy: str, split: str, count: int) -> dict[str, list[bool]]:
    """`count` episodes of every task -> the outcomes of each."""
    jobs = episode_jobs(TASK_NAMES, count, SEED)
    world = {"image_size": SIZE_PX, "split": split}
    won: dict[str, list[bool]] = {task: [] for task in TASK_NAMES}
    for outcome in rollout(policy, "", world, jobs, len(os.sched_getaffinity(0))):
        won[outcome.task].append(outcome.success)
    return won
