"""Datasets of transitions, each task's from a source of its own: the replay buffer of a training, or a policy at work.

`python -m data locomotion` makes the walker2d row of CDS (table 3).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.claim import sha256
from data.shards import DatasetError
from data.transitions import Transitions, read_transitions, record, write_transitions
from sim.locomotion import Body, Walk, body_by_name
from sim.options import choose, option

POLICY = "eval.walking:behaviour"  # by name: evaluation is above data
Act = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class LocomotionConfig:
    """Every option of `python -m data locomotion`."""

    out: str = option("datasets/walker2d.h5", "the file")
    body: str = option("walker2d", "of sim/locomotion.py")
    sources: tuple[str, ...] = option(
        (
            "run-forward=runs/walker2d-sac/replay.h5:109900",
            "run-backward=models/trained/walker2d-medium.pt:31298",
            "jump=models/trained/walker2d-expert.pt:5000",
        ),
        "TASK=FILE:STEPS each; FILE: a dataset, whose first steps are taken, or policies, of which the task's acts",
    )
    seed: int = option(0, "of the policies' actions and of where they begin")

    def __post_init__(self) -> None:
        body = body_by_name(self.body)
        tasks = [read_source(text)[0] for text in self.sources]
        for task in tasks:
            choose("task", task, body.task_names)
            if tasks.count(task) > 1:
                raise ValueError(f"task {task} has two sources")


def read_source(text: str) -> tuple[str, Path, int]:
    """Task, file, and number of steps of TASK=FILE:STEPS."""
    task, _, rest = text.partition("=")
    file, _, steps = rest.rpartition(":")
    if not file or not steps.isdecimal() or not int(steps):
        raise ValueError(f"a source is TASK=FILE:STEPS, got {text!r}")
    return task, Path(file), int(steps)


def make(config: LocomotionConfig) -> Transitions:
    """The dataset, which is written too."""
    body, parts = body_by_name(config.body), []
    about: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(config.sources):
        task, file, steps = read_source(text)
        if file.suffix == ".h5":
            parts.append(_first_steps(file, body, task, steps))
            about[task] = {"kind": "replay", "file": file.name}
        else:
            act, told = _load(file, task, [config.seed, number])
            parts.append(act_out(body, task, act, steps, config.seed * 1000 + number))
            about[task] = {"kind": "policy", "file": file.name, "seed": config.seed, **told}
        about[task]["sha256"] = sha256(file)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    made = Transitions(body=body, columns=columns, about=about)
    write_transitions(Path(config.out), made)
    return made


def _first_steps(file: Path, body: Body, task: str, steps: int) -> dict[str, NDArray[Any]]:
    if not file.is_file():
        raise DatasetError(f"{file}: no such replay; make collect-walker2d makes the one of its default")
    found = read_transitions(file)
    mine = np.flatnonzero(found.columns["task"] == body.task_names.index(task))[:steps]
    if found.body is not body or len(mine) < steps:
        raise DatasetError(f"{file}: holds {len(mine)} steps of {body.name}'s task {task}, not {steps}")
    part = {name: column[mine] for name, column in found.columns.items()}
    part["last"][-1] = True
    return part


def _load(file: Path, task: str, seed: list[int]) -> tuple[Act, dict[str, Any]]:
    loaded: tuple[Act, dict[str, Any]] = pkgutil.resolve_name(POLICY)(file, task, seed)
    return loaded


def act_out(body: Body, task: str, act: Act, steps: int, seed: int) -> dict[str, NDArray[Any]]:
    """The columns of so many steps of episodes in a row; the last one may be cut short."""
    columns, index = Transitions.empty(body, steps), body.task_names.index(task)
    walk = Walk(body)
    now = walk.reset(seed)
    for place in tqdm(range(steps), desc=task, unit="step"):
        step = walk.step(act(now))
        record(columns, (place,), now, step, index)
        now = walk.reset() if step.ended else step.observation
    columns["last"][-1] = True
    walk.close()
    return columns


def describe(transitions: Transitions) -> str:
    """Steps, episodes and mean return of each task's own data."""
    columns, rewards = transitions.columns, transitions.rewards
    head = f"{transitions.body.name}, {len(transitions)} steps"
    lines = [head, f"{'task':<16}{'steps':>9}{'episodes':>10}{'return':>9}"]
    for index, task in enumerate(transitions.body.task_names):
        mine = columns["task"] == index
        episodes = int(columns["last"][mine].sum())
        mean = f"{rewards[mine, index].sum() / episodes:.1f}" if episodes else "-"
        kind = transitions.about.get(task, {}).get("kind", "")
        lines.append(f"{task:<16}{mine.sum():>9}{episodes:>10}{mean:>9}  {kind}")
    return "\n".join(lines)
