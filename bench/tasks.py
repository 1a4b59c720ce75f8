"""Success rates of the scripted and the crude policy on every task, with all factors randomised."""

from __future__ import annotations

import os

import numpy as np

from bench.report import Row
from eval.intervals import wilson
from eval.rollout import episode_jobs, rollout
from sim.tasks import TASK_NAMES, TASKS

SEED = 7
SIZE_PX = 64  # these policies ignore the image
LEAST_SCRIPTED = 95.0
CRUDE_RANGES = {"lift": (30.0, 50.0), "place": (70.0, 90.0)}


def run(quick: bool) -> list[Row]:
    count = 4 if quick else 200
    rows = []
    for split in ("train", "test"):
        successes = _play("scripted", split, count)
        rows += [
            _row(f"scripted policy, {split} split: {task}", successes[task], LEAST_SCRIPTED) for task in TASK_NAMES
        ]
    crude = _play("crude", "train", count)
    for skill, (least, most) in CRUDE_RANGES.items():
        pooled = [success for task in TASK_NAMES if TASKS[task].skill == skill for success in crude[task]]
        rows.append(_row(f"crude policy at noise 1: {skill}s", pooled, least, most))
    return rows


def _row(name: str, successes: list[bool], least: float, most: float | None = None) -> Row:
    low, high = wilson(sum(successes), len(successes))
    return Row(
        name=name,
        value=100 * float(np.mean(successes)),
        unit="% success",
        target=least,
        most=most,
        target_of="value",
        note=f"{len(successes)} episodes, seed {SEED}, 95% interval {100 * low:.1f}-{100 * high:.1f}",
    )


def _play(policy: str, split: str, count: int) -> dict[str, list[bool]]:
    """Plays `count` episodes of every task and returns the successes per task."""
    jobs = episode_jobs(TASK_NAMES, count, SEED)
    env_options = {"image_size": SIZE_PX, "split": split}
    successes: dict[str, list[bool]] = {task: [] for task in TASK_NAMES}
    for outcome in rollout(policy, "", env_options, jobs, len(os.sched_getaffinity(0))):
        successes[outcome.task].append(outcome.success)
    return successes
