"""Stability over 20,000 episodes of random actions: non-finite states, objects below the table, growth of memory."""

from __future__ import annotations

import multiprocessing as mp
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.report import Row
from sim import actions
from sim.policies import RandomPolicy
from sim.scenes import draw_scene
from sim.state import OBJECT_NAMES
from sim.tasks import TASK_NAMES, TASKS
from sim.world import TABLE_M, World

EPISODES = 20_000
SUNK_M = -0.005  # usual penetration is 1 to 2 mm, or 3 to 4 mm where the arm presses
WARM_EPISODES = 200  # per worker, before memory is first measured
IMAGE_PX = 64


@dataclass
class Tally:
    episodes: int = 0
    steps: int = 0
    not_finite: int = 0
    sunk: int = 0
    stuck: int = 0  # still below the table one action later
    where: list[str] = field(default_factory=list)  # seeds of episodes with an object below it
    fallen: int = 0  # over the edge of the table
    before_mib: float = 0.0
    after_mib: float = 0.0


def run(quick: bool) -> list[Row]:
    workers = len(os.sched_getaffinity(0))
    each = (400 if quick else EPISODES) // workers
    with ProcessPoolExecutor(workers, mp_context=mp.get_context("spawn")) as pool:
        tallies = list(pool.map(_play, range(workers), [each] * workers))
    steps, episodes = sum(t.steps for t in tallies), sum(t.episodes for t in tallies)
    growth = max(t.after_mib - t.before_mib for t in tallies)
    where = ", ".join(place for t in tallies for place in t.where)
    memory = ", ".join(f"{t.before_mib:.0f} -> {t.after_mib:.0f} MiB" for t in tallies)

    def count(name: str, value: int, note: str = "") -> Row:
        return Row(name=f"random actions: {name}", value=value, unit="episodes", most=0, target_of="value", note=note)

    return [
        Row(name="random actions", value=episodes, unit="episodes", note=f"{steps} steps, an image per episode"),
        count("a number that is not finite", sum(t.not_finite for t in tallies)),
        count("an object below the table", sum(t.sunk for t in tallies), f"seeds {where}" if where else ""),
        count("the same object still there an action later", sum(t.stuck for t in tallies)),
        Row(
            name="random actions: an object over the table's edge",
            value=sum(t.fallen for t in tallies),
            unit="episodes",
            note="pushed or rolled off: physics, not an error",
        ),
        Row(
            name="random actions: growth of memory",
            value=growth,
            unit="MiB",
            most=16,
            target_of="value",
            note=f"resident, after {WARM_EPISODES} episodes and at the end: {memory}",
        ),
    ]


def _play(worker: int, episodes: int) -> Tally:
    world, tally, policy = World(IMAGE_PX), Tally(episodes=episodes), RandomPolicy()
    half_m = np.array(TABLE_M[0][:2]) / 2
    for number in range(episodes):
        task = TASKS[TASK_NAMES[number % len(TASK_NAMES)]]
        rng = np.random.default_rng([worker, number])
        world.reset(draw_scene(task, rng))
        world.render()
        not_finite = sunk = stuck = fallen = False
        before = np.zeros(len(OBJECT_NAMES), np.bool_)
        for _ in range(task.horizon):
            action = policy.act({}, np.zeros(1, np.int64), rng)[0]  # type: ignore[typeddict-item]
            world.step(action)
            state = world.snapshot()
            tally.steps += 1
            present = state["object_present"] > 0
            above_table = (np.abs(state["object_position"][:, :2] - np.array(TABLE_M[1][:2])) < half_m).all(-1)
            low = present & (state["object_bottom"] < SUNK_M)
            not_finite |= not np.isfinite(state.vector).all()
            sunk |= bool((low & above_table).any())
            stuck |= bool((low & above_table & before).any())
            before = low & above_table
            fallen |= bool((low & ~above_table).any())
            if action[4] == actions.TERMINATE:
                break
        tally.not_finite += not_finite
        tally.sunk += sunk
        tally.stuck += stuck
        if sunk:
            tally.where.append(f"[{worker}, {number}]{' (again)' if stuck else ''}")
        tally.fallen += fallen
        if number == min(WARM_EPISODES, episodes // 2):
            tally.before_mib = _resident_mib()
    tally.after_mib = _resident_mib()
    world.close()
    return tally


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
