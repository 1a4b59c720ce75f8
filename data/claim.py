"""A folder that a collection fills: held by one process, bound to the options it was begun with, gone on with."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.locks import lock_file
from data.manifest import MANIFEST, checksum, read_manifest
from data.plan import CONFIG, CollectConfig, ShardJob, Source
from data.shards import Row, read_shard, shard_files
from sim.files import DatasetError, is_nonempty, read_json, remove_temporaries, sha256, write_atomic
from sim.options import changed
from sim.tasks import TASKS

LOCK = "collect.lock"
BINDING = ("size", "seed", "randomise", "split", "codec", "quality", "episodes_per_shard", "until", "window")
OF_A_SHARD = ("renderer", "size", "seed", "randomise", "split", "codec", "quality")  # its attributes


@contextlib.contextmanager
def claim(folder: Path, config: CollectConfig) -> Iterator[tuple[CollectConfig, dict[str, Any]]]:
    """Hold the folder for this collection alone, refuse one that holds something else -> what binds the dataset."""
    path = folder / CONFIG
    if not path.is_file() and is_nonempty(folder, LOCK):
        ours = (folder / MANIFEST).is_file()
        what = "a merged or split dataset: collect elsewhere and merge" if ours else "not a Switchyard dataset"
        raise DatasetError(f"{folder}: not empty and {what} (it has no {CONFIG})")
    wanted: dict[str, Any] = {key: getattr(config, key) for key in BINDING}
    wanted["sources"] = [_fingerprint(source) for source in config.sources]
    with lock_file(folder / LOCK, f"{folder}: another collection is at work in this folder"):
        counts = [source.episodes for source in config.sources]
        if path.is_file() and shard_files(folder):  # options without an episode bind nobody
            found = read_options(folder)
            _check_same(folder, config, wanted, found, counts)
            asked = found["asked"] if counts == found["asked"][-1] else [*found["asked"], counts]
            about = {**wanted, "renderer": found["renderer"], "asked": asked}
        else:
            from sim.camera import resolve_renderer

            about = {**wanted, "renderer": resolve_renderer(config.renderer), "asked": [counts]}
        remove_temporaries(folder)
        write_atomic(path, json.dumps({**about, "crc32": checksum(about)}, indent=1).encode())
        yield replace(config, renderer=about["renderer"]), about


def _fingerprint(source: Source) -> dict[str, Any]:
    """A source as plain values, its checkpoint by content: a file of that name may change while a dataset grows."""
    known = {"tasks": list(source.tasks), "policy": source.policy, "noise": source.noise}
    if source.checkpoint:
        if not Path(source.checkpoint).is_file():
            raise DatasetError(f"{source.checkpoint}: no such checkpoint")
        known["checkpoint_sha256"] = sha256(Path(source.checkpoint))
    return known


def read_options(folder: Path) -> dict[str, Any]:
    """What the folder collects, as it was written by `claim`."""
    path = folder / CONFIG
    found = read_json(path)
    if found.pop("crc32", None) != checksum(found) or not {*BINDING, "sources", "renderer", "asked"} <= found.keys():
        raise DatasetError(f"{path}: damaged, or of another version; the shards beside it are not touched")
    return found


def _check_same(
    folder: Path, config: CollectConfig, wanted: dict[str, Any], found: dict[str, Any], counts: list[int]
) -> None:
    """Refuses to go on with a dataset that was begun with other options."""
    if config.renderer not in ("auto", found["renderer"]):
        raise DatasetError(f"{folder}: rendered by {found['renderer']}, asked for {config.renderer}")
    many = max(len(options["sources"]) for options in (found, wanted)) > 1
    if differs := changed(_flat(found, many), _flat(wanted, many)):
        raise DatasetError(f"{folder}: already holds a dataset collected with other options: {differs}")
    for held, asked in zip(found["asked"][-1], counts, strict=True):
        if asked < held:
            raise DatasetError(f"{folder}: was asked for {held} episodes, now for {asked}")


def _flat(options: dict[str, Any], many: bool) -> dict[str, Any]:
    """What binds a dataset, the entries of its sources among the others: numbered where there are many."""
    flat = {key: options[key] for key in BINDING}
    for number, source in enumerate(options["sources"]):
        flat |= {f"source {number} {key}" if many else key: value for key, value in source.items()}
    return flat


def finished(folder: Path, jobs: list[ShardJob], about: dict[str, Any]) -> Iterator[tuple[ShardJob, Row]]:
    """Shards that are there: those that the manifest lists as it tells, others from a read of the whole."""
    listed: dict[str, Row] = {}
    if (folder / MANIFEST).is_file():
        with contextlib.suppress(DatasetError):  # a damaged manifest is remade from its shards
            listed = {row.name: row for row in read_manifest(folder).shards}
    for job in jobs:
        path = folder / job.name
        if path.is_file():
            row = listed.get(job.name)
            yield job, row if row and row.bytes == path.stat().st_size else _adopt(path, job, about)


def _adopt(path: Path, job: ShardJob, about: dict[str, Any]) -> Row:
    """The row of a shard that no manifest lists, if it is the one that this job would make."""
    try:
        row, tables, attributes = read_shard(path)
    except DatasetError as error:
        raise DatasetError(f"{error}; delete it, and the same command makes it again") from None
    source = about["sources"][job.source]
    wanted = {key: about[key] for key in OF_A_SHARD} | {"source": job.source}
    wanted |= {"checkpoint_sha256": "", **{key: value for key, value in source.items() if key != "tasks"}}
    found = {key: attributes[key] for key in wanted}
    wanted |= {"task": {TASKS[job.task].index}, "episodes": list(range(job.first, job.last))}
    found |= {"task": set(tables["episode/task"].tolist()), "episodes": tables["episode/number"].tolist()}
    differs = [key for key in wanted if found[key] != wanted[key]]
    if differs:
        raise DatasetError(f"{path}: holds other episodes than it should ({', '.join(differs)} differ); delete it")
    return row
