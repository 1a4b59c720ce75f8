"""`python -m data select` and `drop`: filter the episodes of a dataset by the metadata in its manifest."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.manifest import Episodes, check_new, episodes_of, read_manifest, write_selection
from data.plan import POLICIES
from data.shards import require_shards
from sim.files import DatasetError
from sim.options import check_choice
from sim.tasks import SKILLS, TASK_NAMES, TASKS

Mask = NDArray[np.bool_]  # [E], one value for each episode
SIGNS = {"<=": np.less_equal, ">=": np.greater_equal, "<": np.less, ">": np.greater, "=": np.equal}


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A named predicate on episodes, such as `length<=20`."""

    example: str
    signs: tuple[str, ...]  # allowed comparison operators
    holds: Callable[[Episodes, str, str], Mask]  # (episodes, sign, text of the value) -> where it is true


def _outcome(name: str, succeeds: bool) -> Condition:
    return Condition(example=name, signs=("",), holds=lambda episodes, *_: episodes.own_success == succeeds)


def _name(kind: str, example: str, choices: tuple[str, ...], holds: Callable[[Episodes, str], Mask]) -> Condition:
    return Condition(
        example=example,
        signs=("=",),
        holds=lambda episodes, _, text: holds(episodes, check_choice(kind, text, choices)),
    )


def _number(example: str, values: Callable[[Episodes], NDArray[np.int64]]) -> Condition:
    def holds(episodes: Episodes, sign: str, text: str) -> Mask:
        if sign == "=" and (bounds := re.fullmatch(r"(\d*)\s*:\s*(\d*)", text)):
            first, end = int(bounds[1] or 0), float(bounds[2] or "inf")
            return (values(episodes) >= first) & (values(episodes) < end)
        if not text.isdecimal():
            raise ValueError(f"{text!r} is neither a whole number nor a range A:B; write it as in {example}")
        return SIGNS[sign](values(episodes), int(text))

    return Condition(example=example, signs=tuple(SIGNS), holds=holds)


CONDITIONS = {
    "success": _outcome("success", True),
    "failure": _outcome("failure", False),
    "task": _name("task", "task=lift-can|lift-milk", TASK_NAMES, lambda e, name: e.task == TASKS[name].index),
    "skill": _name(
        "skill", "skill=lift", tuple(dict.fromkeys(SKILLS)), lambda e, name: np.array(SKILLS)[e.task] == name
    ),
    "policy": _name("policy", "policy=crude|scripted", POLICIES, lambda e, name: e.policy == name),
    "solves": _name("task", "solves=place-bowl", TASK_NAMES, lambda e, name: e.success[:, TASKS[name].index]),
    "length": _number("length<=20", lambda e: e.length),
    "number": _number("number=0:100", lambda e: e.number),
    "episodes": _number("episodes=0:100|250", lambda e: np.arange(len(e.task))),
}


def select(folder: Path, out: Path, where: str | None, *, per_task: int | None = None, drop: bool = False) -> int:
    """Write a manifest in `out` of the episodes that match `where`, or with `drop` of the others; of each task at most
    the first `per_task`. Returns the number of episodes before the selection.

    The shards of `folder` are listed in place. DatasetError if no episode is left."""
    if where is None and per_task is None:
        raise ValueError("nothing to select by: give --where, --per-task, or both")
    if per_task is not None and per_task < 1:
        raise ValueError(f"per-task is at least 1, got {per_task}")
    manifest = read_manifest(folder)
    episodes = episodes_of(manifest)
    chosen = np.ones(manifest.episodes, np.bool_) if where is None else holding(episodes, where) ^ drop
    for task in range(len(TASK_NAMES)) if per_task else ():
        chosen[np.flatnonzero(chosen & (episodes.task == task))[per_task:]] = False
    if not chosen.any():
        which = "all" if drop else "none"
        text = f"nothing is left, of its {manifest.episodes} episodes {which} fulfil {where!r}"
        raise DatasetError(f"{folder}: {text}")
    require_shards(folder / entry.name for entry in manifest.shards)
    check_new(out)
    write_selection(out, folder, manifest, chosen)
    return manifest.episodes


def holding(episodes: Episodes, where: str) -> Mask:
    """Mask of the episodes that match: conditions are separated by commas (and), alternatives by `|` (or)."""
    return np.logical_and.reduce([_any(episodes, text) for text in where.split(",")])


def _any(episodes: Episodes, text: str) -> Mask:
    """Mask of the episodes that match one alternative; a bare value reuses the name and sign before it."""
    masks, name, sign = [], "", ""
    for alternative in text.split("|"):
        parts = re.split(r"(<=|>=|<|>|=)", alternative, maxsplit=1)
        first, value = parts[0].strip(), parts[-1].strip()
        if len(parts) > 1 or not sign or first in CONDITIONS:
            name, sign = check_choice("condition", first, tuple(CONDITIONS)), "".join(parts[1:2])
        if sign not in CONDITIONS[name].signs:
            raise ValueError(f"{alternative.strip()!r}: write it as in {CONDITIONS[name].example}")
        masks.append(CONDITIONS[name].holds(episodes, sign, value))
    return np.logical_or.reduce(masks)
