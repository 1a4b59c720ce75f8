"""Manifests: a dataset's list of shards with the metadata of each episode, so that opening a dataset opens no shard.

A manifest may list shards of other folders and a subset of a shard's episodes, so merge and split copy no frame. It
carries its own checksum and those that verify every byte of the shards (data/shards.py).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.locks import lock_file
from data.shards import (
    MADE_AGAIN,
    SCHEMA_VERSION,
    ManifestEntry,
    read_listed,
    require_shards,
    shard_files,
    unpack_success,
)
from sim.files import DatasetError, is_nonempty, read_json, write_atomic
from sim.options import check_is_seed
from sim.state import SIM_VERSION
from sim.tasks import TASK_NAMES

MANIFEST = "manifest.json"
MERGE_KEYS = ("size", "frame_size", "renderer", "split")  # must be equal for datasets to be merged


@dataclass(frozen=True, kw_only=True)
class Manifest:
    size: int  # network input, px
    frame_size: int  # stored frames, px
    renderer: str
    split: str
    randomise: tuple[str, ...]
    shards: tuple[ManifestEntry, ...]

    @property
    def episodes(self) -> int:
        return sum(len(entry.task) for entry in self.shards)

    @property
    def steps(self) -> int:
        return sum(sum(entry.length) for entry in self.shards)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    values = {
        "schema": SCHEMA_VERSION,
        "sim_version": SIM_VERSION,
        "tasks": list(TASK_NAMES),
        "episodes": manifest.episodes,
        "steps": manifest.steps,
        **vars(manifest),
        "randomise": list(manifest.randomise),
        "shards": [vars(entry) | {"name": _as_utf8(entry.name)} for entry in manifest.shards],
    }
    values["crc32"] = checksum(values)
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items() if key != "shards"]
    shards = ",\n".join(json.dumps(entry) for entry in values["shards"])  # one a line, for `diff`
    write_atomic(folder / MANIFEST, ("{" + ",\n".join(lines) + f',\n"shards": [\n{shards}\n]}}\n').encode())


def read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if folder.is_file():
        raise DatasetError(f"{folder}: a file; this works on datasets of episodes, which are folders")
    if not path.is_file():
        raise DatasetError(
            f"{folder}: shards without a {MANIFEST}; {MADE_AGAIN}"
            if shard_files(folder)
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
        fields = {name: values[name] for name in (*MERGE_KEYS, "randomise")}
        shards = tuple(ManifestEntry(**entry | {"name": _from_utf8(entry["name"])}) for entry in values["shards"])
        return Manifest(**{**fields, "randomise": tuple(fields["randomise"])}, shards=shards)
    except (AttributeError, KeyError, TypeError, UnicodeError) as error:
        raise DatasetError(f"{path}: not a manifest this version can read ({error!r})") from error


def _as_utf8(name: str) -> str:
    """A file name as the manifest keeps it: its bytes as UTF-8, whatever the encoding of the locale."""
    return os.fsencode(name).decode(errors="surrogateescape")


def _from_utf8(name: str) -> str:
    return os.fsdecode(name.encode(errors="surrogateescape"))


def checksum(values: dict[str, Any]) -> int:
    rest = {key: value for key, value in values.items() if key != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def merge(out: Path, folders: Sequence[Path], *, copy: bool = False, replace_manifest: bool = False) -> Manifest:
    """Merge datasets: a manifest in `out` that lists all their shards in place, by relative paths.

    `copy`: copy whole shards, so that `out` is self-contained. `replace_manifest`: `out` may hold an earlier manifest.
    DatasetError if the datasets differ in one of MERGE_KEYS, or hold the same episode twice."""
    if not folders:
        raise DatasetError("nothing to merge: name at least one dataset")
    manifests = [read_manifest(folder) for folder in folders]
    for key in MERGE_KEYS:
        values = {str(folder): getattr(manifest, key) for folder, manifest in zip(folders, manifests, strict=True)}
        if len(set(values.values())) > 1:
            raise DatasetError(f"cannot merge: {key} differs, {values}")
    entries: list[ManifestEntry] = []
    seen: dict[tuple[str, int, int], Path] = {}
    for folder, manifest in zip(folders, manifests, strict=True):
        require_shards(folder / entry.name for entry in manifest.shards)
        for entry in manifest.shards:
            for task, number in zip(entry.task, entry.number, strict=True):
                if other := seen.get((entry.origin, task, number)):
                    raise DatasetError(
                        f"cannot merge: {folder} and {other} both hold episode {number} of {TASK_NAMES[task]} "
                        f"({entry.origin}); collect one of them with another --seed"
                    )
                seen[entry.origin, task, number] = folder
            entries.append(replace(entry, name=os.path.relpath((folder / entry.name).resolve(), out.resolve())))
    randomise = tuple(sorted({factor for manifest in manifests for factor in manifest.randomise}))
    if not replace_manifest:
        check_new(out)
    merged = replace(manifests[0], randomise=randomise, shards=tuple(entries))
    if copy:
        return _write_copy(out, merged)
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(out, merged)
    return merged


def _write_copy(out: Path, manifest: Manifest) -> Manifest:
    """Copy each shard once into `out`, under a unique name, and write the manifest of the copies."""
    entries = {entry.name: entry for entry in manifest.shards}
    names = {name: f"{number:06d}-{Path(name).name}" for number, name in enumerate(entries)}
    copied = replace(manifest, shards=tuple(replace(entry, name=names[entry.name]) for entry in manifest.shards))
    with atomic_folder(out) as making:
        for name, own in names.items():
            source = Path(os.path.normpath(out.resolve() / name))
            write_atomic(making / own, read_listed(source, entries[name]))
        write_manifest(making, copied)
    return copied


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `out` to fill, renamed to `out` on success and removed on error.

    The next attempt removes what a killed process left there. DatasetError if `out` is not new."""
    check_new(out)
    out = out.resolve()
    if out.is_mount():
        raise DatasetError(f"{out}: a mount point, which cannot be replaced as a whole; name a new folder in it")
    making = out.with_name(f".{out.name}.making")
    lock = making.with_suffix(".lock")
    with lock_file(lock, f"{out}: another command is writing it"):
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        try:
            yield making
            for junk in out.iterdir() if out.exists() else ():
                os.replace(junk, making / junk.name)
            os.replace(making, out)
        except OSError as error:
            shutil.rmtree(making, ignore_errors=True)
            if error.filename is None:  # HDF5's takes several lines
                raise OSError(error.errno or errno.EIO, str(error).splitlines()[0], str(out)) from error
            raise
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        finally:
            lock.unlink(missing_ok=True)


def split(folder: Path, first: Path, second: Path, fraction: float, seed: int) -> tuple[Manifest, Manifest]:
    """Stratified random split: `fraction` of the episodes of each task and outcome go to `first`, the rest to `second`.

    Both list the shards of `folder` in place."""
    check_is_seed("seed", seed)
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is between 0 and 1, got {fraction}")
    if first.resolve() == second.resolve():
        raise DatasetError(f"{first}: both halves in one folder")
    manifest = read_manifest(folder)
    require_shards(folder / entry.name for entry in manifest.shards)
    rng = np.random.default_rng(seed)
    episodes = episodes_of(manifest)
    kind = 2 * episodes.task + episodes.own_success
    in_first = np.zeros(manifest.episodes, np.bool_)
    for number in range(2 * len(TASK_NAMES)):
        group = np.flatnonzero(kind == number)
        in_first[rng.permutation(group)[: int(fraction * len(group) + rng.random())]] = True  # on average
    halves = ((first, in_first), (second, ~in_first))
    for out, chosen in halves:
        check_new(out)
        if not chosen.any():
            raise DatasetError(f"{folder}: too few episodes for a fraction of {fraction:g}: nothing is left for {out}")
    one, other = (write_selection(out, folder, manifest, chosen) for out, chosen in halves)
    return one, other


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """Metadata of the episodes [E] of a dataset, in the order of its manifest."""

    policy: NDArray[np.str_]
    task: NDArray[np.int64]
    number: NDArray[np.int64]
    length: NDArray[np.int64]  # steps
    success: NDArray[np.bool_]  # [E, N], at every task

    @property
    def own_success(self) -> NDArray[np.bool_]:
        """[E] success of each episode at the task it was collected for."""
        return self.success[np.arange(len(self.task)), self.task]


def episodes_of(manifest: Manifest) -> Episodes:
    entries = manifest.shards
    counts = [len(entry.task) for entry in entries]
    task, number, length, success = (
        np.array([value for entry in entries for value in getattr(entry, key)], np.int64)
        for key in ("task", "number", "length", "success")
    )
    return Episodes(
        policy=np.repeat(np.array([entry.policy for entry in entries], np.str_), counts),
        task=task,
        number=number,
        length=length,
        success=unpack_success(success),
    )


def write_selection(out: Path, folder: Path, manifest: Manifest, chosen: NDArray[np.bool_]) -> Manifest:
    """Write a manifest in `out` of the `chosen` [E] episodes of `folder`; its shards are listed in place."""
    ends = np.cumsum([len(entry.task) for entry in manifest.shards])
    wanted = [np.flatnonzero(part).tolist() for part in np.split(chosen, ends[:-1])]
    entries = [
        replace(select_episodes(entry, numbers), name=os.path.relpath((folder / entry.name).resolve(), out.resolve()))
        for entry, numbers in zip(manifest.shards, wanted, strict=True)
        if numbers
    ]
    out.mkdir(parents=True, exist_ok=True)
    selected = replace(manifest, shards=tuple(entries))
    write_manifest(out, selected)
    return selected


def select_episodes(entry: ManifestEntry, numbers: Sequence[int]) -> ManifestEntry:
    """The entry with only these of its episodes."""
    tables = (entry.task, entry.number, entry.first, entry.length, entry.success)
    task, number, first, length, success = ([values[n] for n in numbers] for values in tables)
    return replace(entry, task=task, number=number, first=first, length=length, success=success)


def check_new(out: Path) -> None:
    """DatasetError if this folder is not empty, or is a file."""
    if out.is_file():
        raise DatasetError(f"{out}: a file; name a new folder")
    if is_nonempty(out):
        raise DatasetError(f"{out}: not empty; choose another folder")
