"""Success of the scripted policies on every task, everything randomised: can it be done, and how hard is it?"""

from __future__ import annotations

import multiprocessing as mp
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from bench.report import Row
from eval.rollout import wilson
from sim import actions
from sim.policies import CrudePolicy, Observation, Policy, ScriptedPolicy
from sim.scenes import draw_scene
from sim.tasks import TASK_NAMES, TASKS, verdicts
from sim.world import World

POLICIES: dict[str, type[Policy]] = {"expert": ScriptedPolicy, "crude": CrudePolicy}
SEED = 7
LEAST_EXPERT = 95.0
CRUDE_RANGES = {"lift": (30.0, 50.0), "place": (70.0, 90.0)}


def run(quick: bool) -> list[Row]:
    count = 4 if quick else 200
    rows = []
    for split in ("train", "test"):
        won = _play("expert", split, count)
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
    workers = len(os.sched_getaffinity(0))
    numbers = [range(first, count, workers) for first in range(workers)]
    won: dict[str, list[bool]] = {task: [] for task in TASK_NAMES}
    with ProcessPoolExecutor(workers, mp_context=mp.get_context("spawn")) as pool:
        for part in pool.map(_episodes, [policy] * workers, [split] * workers, numbers):
            for task, outcomes in part.items():
                won[task] += outcomes
    return won


def _episodes(kind: str, split: str, numbers: range) -> dict[str, list[bool]]:
    world = World(64)
    won: dict[str, list[bool]] = {task: [] for task in TASK_NAMES}
    for number in numbers:
        for task in TASKS.values():
            rng = np.random.default_rng([SEED, task.index, number])
            world.reset(draw_scene(task, rng, split=split))
            policy, state = POLICIES[kind](), world.snapshot()
            for _ in range(task.horizon):
                action = policy.act(_observe(world), np.array([task.index]), rng)[0]
                world.step(action)
                state = world.snapshot()
                if action[4] == actions.TERMINATE:
                    break
            won[task.name].append(bool(verdicts(state)[task.index]))
    world.close()
    return won


def _observe(world: World) -> Observation:
    """Without the picture, which scripted policies do not look at."""
    state = world.snapshot()
    return Observation(
        image=np.zeros((1, 1, 1, 3), np.uint8),
        gripper_closed=state["gripper_closed"][None],
        gripper_height=state["gripper_position"][None, 2],
        state=state.vector[None],
    )
