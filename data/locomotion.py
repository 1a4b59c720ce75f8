"""Datasets of transitions, each task's from a source of its own: the replay buffer of a training, or a policy at work.

`python -m data locomotion` makes the walker2d row of CDS (table 3).
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.transitions import Transitions, parse_transitions, read_transitions, record, write_transitions
from sim.files import DatasetError, sha256
from sim.locomotion import Body, Walk, body_by_name
from sim.options import changed, check_choice, check_seed, option

Act = Callable[[NDArray[np.float32]], NDArray[np.float32]]
# (file, task, seed) -> the task's policy in a file of policies, and what the file tells of it; given from above, as
# evaluation is above data; eval.returns.behaviour is one.
LoadPolicy = Callable[[Path, str, list[int]], tuple[Act, dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class LocomotionConfig:
    """Every option of `python -m data locomotion`."""

    out: str = option("datasets/walker2d.h5", "the file; one of the same sources is left as it is, another is refused")
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
        check_seed(self, "seed")
        body = body_by_name(self.body)
        tasks = [read_source(text)[0] for text in self.sources]
        for task in tasks:
            check_choice("task", task, body.task_names)
            if tasks.count(task) > 1:
                raise ValueError(f"task {task} has two sources")


def read_source(text: str) -> tuple[str, Path, int]:
    """Task, file, and number of steps of TASK=FILE:STEPS."""
    task, _, rest = text.partition("=")
    file, _, steps = rest.rpartition(":")
    if not file or not steps.isdecimal() or not int(steps):
        raise ValueError(f"a source is TASK=FILE:STEPS, got {text!r}")
    return task, Path(file), int(steps)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A source that has been read, of `steps` steps of a task."""

    task: str
    steps: int
    about: dict[str, Any]  # what the dataset says of it
    columns: Callable[[], dict[str, NDArray[Any]]]


def make(config: LocomotionConfig, load_policy: LoadPolicy) -> Transitions:
    """The dataset, which is written too, unless its file is there already. DatasetError where that was made of other
    sources."""
    body, out = body_by_name(config.body), Path(config.out)
    opened = [_open(body, text, config.seed, number, load_policy) for number, text in enumerate(config.sources)]
    about = {source.task: source.about for source in opened}
    if out.exists():
        steps = {source.task: source.steps for source in opened}
        found = _already_there(out, _content(body, about, [steps.get(name, 0) for name in body.task_names]))
        print(f"{out}: already there, made of these sources", file=sys.stderr)
        return found
    parts = [source.columns() for source in opened]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    made = Transitions(body=body, columns=columns, about=about)
    write_transitions(out, made)
    return made


def _already_there(out: Path, wanted: dict[str, Any]) -> Transitions:
    try:
        found = read_transitions(out)
    except DatasetError as error:
        raise DatasetError(f"{error}; choose another --out or delete it") from None
    steps = np.bincount(found.columns["task"], minlength=len(found.body.tasks)).tolist()
    if differs := changed(_content(found.body, found.about, steps), wanted):
        raise DatasetError(f"{out}: already there, made of other sources: {differs}; choose another --out or delete it")
    return found


def _content(body: Body, about: dict[str, dict[str, Any]], steps: list[int]) -> dict[str, Any]:
    """What a dataset holds, entry by entry; `steps` of each of the body's tasks."""
    counts = {f"{task} steps": count for task, count in zip(body.task_names, steps, strict=True)}
    entries = {f"{task} {key}": value for task, told in about.items() for key, value in told.items()}
    return {"body": body.name, "order": list(about), **counts, **entries}


def _open(body: Body, text: str, seed: int, number: int, load_policy: LoadPolicy) -> Opened:
    task, file, steps = read_source(text)
    if file.suffix == ".h5":
        if not file.is_file():
            raise DatasetError(f"{file}: no such replay; make collect-walker2d makes the one of its default")
        content = file.read_bytes()
        part = _first_steps(file, content, body, task, steps)
        about: dict[str, Any] = {"kind": "replay", "file": file.name, "sha256": hashlib.sha256(content).hexdigest()}
        return Opened(task=task, steps=steps, about=about, columns=lambda: part)
    before = sha256(file) if file.is_file() else None
    act, told = load_policy(file, task, [seed, number])
    if sha256(file) != before:
        raise DatasetError(f"{file}: changed while it was read; try again when it is whole")
    about = {"kind": "policy", "file": file.name, "seed": seed, **told, "sha256": before}
    play = functools.partial(act_out, body, task, act, steps, seed * 1000 + number)
    return Opened(task=task, steps=steps, about=about, columns=play)


def _first_steps(file: Path, content: bytes, body: Body, task: str, steps: int) -> dict[str, NDArray[Any]]:
    found = parse_transitions(file, content)
    mine = np.flatnonzero(found.columns["task"] == body.task_names.index(task))[:steps]
    if found.body is not body or len(mine) < steps:
        raise DatasetError(f"{file}: holds {len(mine)} steps of {body.name}'s task {task}, not {steps}")
    part = {name: column[mine] for name, column in found.columns.items()}
    part["last"][-1] = True
    return part


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
