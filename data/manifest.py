"""Manifests: the list of a dataset's shards, with what each episode is, so that opening a dataset opens no shard.

A manifest may list shards of other folders, and some episodes of a shard: merging and splitting copy no picture. It
carries its own checksum, and those by which everything in the shards is checked (data/shards.py).
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.shards import (
    MADE_AGAIN,
    SCHEMA_VERSION,
    DatasetError,
    Row,
    occupied,
    read_json,
    read_listed,
    require,
    write_whole,
)
from sim.state import SIM_VERSION
from sim.tasks import TASK_NAMES

MANIFEST = "manifest.json"
SHARED = ("size", "frame_size", "renderer", "split")  # what datasets must have in common to be merged


@dataclass(frozen=True, kw_only=True)
class Manifest:
    size: int  # what the network sees, px
    frame_size: int  # what is stored, px
    renderer: str
    split: str
    randomise: tuple[str, ...]
    shards: tuple[Row, ...]

    @property
    def episodes(self) -> int:
        return sum(len(row.task) for row in self.shards)

    @property
    def steps(self) -> int:
        return sum(sum(row.length) for row in self.shards)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    values = {
        "schema": SCHEMA_VERSION,
        "sim_version": SIM_VERSION,
        "tasks": list(TASK_NAMES),
        "episodes": manifest.episodes,
        "steps": manifest.steps,
        **vars(manifest),
        "randomise": list(manifest.randomise),
        "shards": [vars(row) for row in manifest.shards],
    }
    values["crc32"] = checksum(values)
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items() if key != "shards"]
    shards = ",\n".join(json.dumps(row) for row in values["shards"])  # one a line: a person may read it, and `diff`
    write_whole(folder / MANIFEST, ("{" + ",\n".join(lines) + f',\n"shards": [\n{shards}\n]}}\n').encode())


def read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        there = next(folder.glob("*.h5"), None) if folder.is_dir() else None
        raise DatasetError(
            f"{folder}: shards without a {MANIFEST}; {MADE_AGAIN}"
            if there
            else f"{folder}: no dataset here (no {MANIFEST}); make one with `python -m data collect`"
        )
    values = read_json(path)
    if values.get("schema") != SCHEMA_VERSION:
        raise DatasetError(f"{path}: schema {values.get('schema')}, this version reads schema {SCHEMA_VERSION}")
    if values.get("crc32") != checksum(values):
        raise DatasetError(
            f"{path}: damaged manifest, its checksum does not match; `collect` makes it again, and what was merged or "
            "split can be, in a new folder"
        )
    if (values.get("sim_version"), values.get("tasks")) != (SIM_VERSION, list(TASK_NAMES)):
        raise DatasetError(
            f"{path}: recorded in world {values.get('sim_version')} with the tasks {values.get('tasks')}, "
            f"this is world {SIM_VERSION} with {TASK_NAMES}"
        )
    try:
        fields = {name: values[name] for name in (*SHARED, "randomise")}
        shards = tuple(Row(**row) for row in values["shards"])
        return Manifest(**{**fields, "randomise": tuple(fields["randomise"])}, shards=shards)
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{path}: not a manifest this version can read ({error!r})") from error


def checksum(values: dict[str, Any]) -> int:
    rest = {key: value for key, value in values.items() if key != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def merge(out: Path, folders: Sequence[Path], *, copy: bool = False, replace_manifest: bool = False) -> Manifest:
    """One dataset of several: a manifest in `out` that lists all their shards where they lie, which must stay there.

    `copy`: the shards are copied, whole, and `out` stands alone. `replace_manifest`: it may hold an earlier one.
    DatasetError where the datasets differ in what they must share, or hold an episode twice."""
    if not folders:
        raise DatasetError("nothing to merge: name at least one dataset")
    manifests = [read_manifest(folder) for folder in folders]
    for key in SHARED:
        values = {str(folder): getattr(manifest, key) for folder, manifest in zip(folders, manifests, strict=True)}
        if len(set(values.values())) > 1:
            raise DatasetError(f"cannot merge: {key} differs, {values}")
    rows: list[Row] = []
    seen: dict[tuple[str, int, int], Path] = {}
    for folder, manifest in zip(folders, manifests, strict=True):
        require(folder / row.name for row in manifest.shards)
        for row in manifest.shards:
            for task, number in zip(row.task, row.number, strict=True):
                if other := seen.get((row.origin, task, number)):
                    raise DatasetError(
                        f"cannot merge: {folder} and {other} both hold episode {number} of {TASK_NAMES[task]} "
                        f"({row.origin}); collect one of them with another --seed"
                    )
                seen[row.origin, task, number] = folder
            rows.append(replace(row, name=os.path.relpath((folder / row.name).resolve(), out.resolve())))
    randomise = tuple(sorted({factor for manifest in manifests for factor in manifest.randomise}))
    if not replace_manifest:
        check_new(out)
    merged = replace(manifests[0], randomise=randomise, shards=tuple(rows))
    if copy:
        return _write_copy(out, merged)
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(out, merged)
    return merged


def _write_copy(out: Path, manifest: Manifest) -> Manifest:
    """The dataset with its shards copied into `out`, each once and under a name of its own. Until all are there they
    lie in a folder beside it, which the next attempt empties."""
    making = out.with_name(f".{out.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    rows = {row.name: row for row in manifest.shards}
    names = {name: f"{number:06d}-{Path(name).name}" for number, name in enumerate(rows)}
    for name, own in names.items():
        source = Path(os.path.normpath(out.resolve() / name))
        write_whole(making / own, read_listed(source, rows[name]))
    copied = replace(manifest, shards=tuple(replace(row, name=names[row.name]) for row in manifest.shards))
    write_manifest(making, copied)
    os.replace(making, out)  # where there is a folder it is empty
    return copied


def split(folder: Path, first: Path, second: Path, share: float, seed: int) -> tuple[Manifest, Manifest]:
    """Two datasets of one: `first` has a random `share` of the episodes of each task and outcome, `second` the others.

    Both list the shards of `folder` where they lie."""
    if not 0 < share < 1:
        raise ValueError(f"share is between 0 and 1, got {share}")
    if first.resolve() == second.resolve():
        raise DatasetError(f"{first}: both halves in one folder")
    manifest = read_manifest(folder)
    require(folder / row.name for row in manifest.shards)
    rng = np.random.default_rng(seed)
    shard = np.repeat(np.arange(len(manifest.shards)), [len(row.task) for row in manifest.shards])
    task = np.array([task for row in manifest.shards for task in row.task], np.int64)
    success = np.array([success for row in manifest.shards for success in row.success], np.int64)
    won = success >> task & 1
    in_first = np.zeros(len(task), np.bool_)
    for kind in range(2 * len(TASK_NAMES)):
        group = np.flatnonzero(2 * task + won == kind)
        in_first[rng.permutation(group)[: int(share * len(group) + rng.random())]] = True  # on average
    for out, chosen in ((first, in_first), (second, ~in_first)):
        check_new(out)
        if not chosen.any():
            raise DatasetError(f"{folder}: too few episodes for a share of {share:g}: nothing is left for {out}")
    halves = []
    for out, chosen in ((first, in_first), (second, ~in_first)):
        wanted = [np.flatnonzero(chosen[shard == number]).tolist() for number in range(len(manifest.shards))]
        halves.append(_select(out, folder, manifest, wanted))
    return halves[0], halves[1]


def _select(out: Path, folder: Path, manifest: Manifest, wanted: Sequence[Sequence[int]]) -> Manifest:
    """A dataset of some episodes of another: `wanted` numbers them within each of its shards."""
    rows = [
        replace(some_of(row, numbers), name=os.path.relpath((folder / row.name).resolve(), out.resolve()))
        for row, numbers in zip(manifest.shards, wanted, strict=True)
        if numbers
    ]
    out.mkdir(parents=True, exist_ok=True)
    selected = replace(manifest, shards=tuple(rows))
    write_manifest(out, selected)
    return selected


def some_of(row: Row, numbers: Sequence[int]) -> Row:
    """A row that lists these of its episodes."""
    tables = (row.task, row.number, row.first, row.length, row.success)
    task, number, first, length, success = ([values[n] for n in numbers] for values in tables)
    return replace(row, task=task, number=number, first=first, length=length, success=success)


def check_new(out: Path) -> None:
    """DatasetError where there is something in this folder."""
    if occupied(out):
        raise DatasetError(f"{out}: not empty; choose another folder")
