"""The folder of a collection: locked by one process, bound to its first options, resumable."""

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
from data.shards import ManifestEntry, read_shard, shard_files
from sim.files import DatasetError, is_nonempty, read_json, remove_temporaries, sha256, write_atomic
from sim.options import changed
from sim.tasks import TASKS

LOCK = "collect.lock"
BINDING = ("size", "seed", "randomise", "split", "codec", "quality", "episodes_per_shard", "until", "window")
SHARD_OPTIONS = ("renderer", "size", "seed", "randomise", "split", "codec", "quality")  # attributes of a shard


@contextlib.contextmanager
def open_collection(folder: Path, config: CollectConfig) -> Iterator[tuple[CollectConfig, dict[str, Any]]]:
    """Lock the folder and start or resume its collection -> (config with its renderer resolved, options on disk).

    DatasetError if another process holds the folder, or if it holds anything but this collection."""
    path = folder / CONFIG
    if not path.is_file() and is_nonempty(folder, LOCK):
        ours = (folder / MANIFEST).is_file()
        what = "a merged or split dataset: collect elsewhere and merge" if ours else "not a Switchyard dataset"
        raise DatasetError(f"{folder}: not empty and {what} (it has no {CONFIG})")
    wanted: dict[str, Any] = {key: getattr(config, key) for key in BINDING}
    wanted["sources"] = [_fingerprint(source) for source in config.sources]
    with lock_file(folder / LOCK, f"{folder}: another collection is at work in this folder"):
        counts = [source.episodes for source in config.sources]
        if path.is_file() and shard_files(folder):  # without a shard, its options bind nothing
            found = read_options(folder)
            _check_same(folder, config, wanted, found, counts)
            asked = found["asked"] if counts == found["asked"][-1] else [*found["asked"], counts]
            metadata = {**wanted, "renderer": found["renderer"], "asked": asked}
        else:
            from sim.camera import resolve_renderer

            metadata = {**wanted, "renderer": resolve_renderer(config.renderer), "asked": [counts]}
        remove_temporaries(folder)
        write_atomic(path, json.dumps({**metadata, "crc32": checksum(metadata)}, indent=1).encode())
        yield replace(config, renderer=metadata["renderer"]), metadata


def _fingerprint(source: Source) -> dict[str, Any]:
    """A source as plain values, its checkpoint by SHA-256: the file may change while a dataset grows."""
    known = {"tasks": list(source.tasks), "policy": source.policy, "noise": source.noise}
    if source.checkpoint:
        if not Path(source.checkpoint).is_file():
            raise DatasetError(f"{source.checkpoint}: no such checkpoint")
        known["checkpoint_sha256"] = sha256(Path(source.checkpoint))
    return known


def read_options(folder: Path) -> dict[str, Any]:
    """The options of the folder's collection, as `open_collection` wrote them."""
    path = folder / CONFIG
    found = read_json(path)
    if found.pop("crc32", None) != checksum(found) or not {*BINDING, "sources", "renderer", "asked"} <= found.keys():
        raise DatasetError(f"{path}: damaged, or of another version; the shards beside it are not touched")
    return found


def _check_same(
    folder: Path, config: CollectConfig, wanted: dict[str, Any], found: dict[str, Any], counts: list[int]
) -> None:
    """DatasetError if the dataset was begun with other options."""
    if config.renderer not in ("auto", found["renderer"]):
        raise DatasetError(f"{folder}: rendered by {found['renderer']}, asked for {config.renderer}")
    many = max(len(options["sources"]) for options in (found, wanted)) > 1
    if differs := changed(_flat(found, many), _flat(wanted, many)):
        raise DatasetError(f"{folder}: already holds a dataset collected with other options: {differs}")
    for held, asked in zip(found["asked"][-1], counts, strict=True):
        if asked < held:
            raise DatasetError(f"{folder}: was asked for {held} episodes, now for {asked}")


def _flat(options: dict[str, Any], many: bool) -> dict[str, Any]:
    """The binding options as a flat dict; entries of the sources are numbered if there are several."""
    flat = {key: options[key] for key in BINDING}
    for number, source in enumerate(options["sources"]):
        flat |= {f"source {number} {key}" if many else key: value for key, value in source.items()}
    return flat


def finished(folder: Path, jobs: list[ShardJob], metadata: dict[str, Any]) -> Iterator[tuple[ShardJob, ManifestEntry]]:
    """Shards on disk with their entries: from the manifest if it lists them, else by reading the whole shard."""
    listed: dict[str, ManifestEntry] = {}
    if (folder / MANIFEST).is_file():
        with contextlib.suppress(DatasetError):  # a damaged manifest is remade from its shards
            listed = {entry.name: entry for entry in read_manifest(folder).shards}
    for job in jobs:
        path = folder / job.name
        if path.is_file():
            entry = listed.get(job.name)
            yield job, entry if entry and entry.bytes == path.stat().st_size else _adopt(path, job, metadata)


def _adopt(path: Path, job: ShardJob, metadata: dict[str, Any]) -> ManifestEntry:
    """The entry of a shard that no manifest lists, verified to be the one that this job would write."""
    try:
        entry, tables, attributes = read_shard(path)
    except DatasetError as error:
        raise DatasetError(f"{error}; delete it, and the same command makes it again") from None
    source = metadata["sources"][job.source]
    wanted = {key: metadata[key] for key in SHARD_OPTIONS} | {"source": job.source}
    wanted |= {"checkpoint_sha256": "", **{key: value for key, value in source.items() if key != "tasks"}}
    found = {key: attributes[key] for key in wanted}
    wanted |= {"task": {TASKS[job.task].index}, "episodes": list(range(job.first, job.last))}
    found |= {"task": set(tables["episode/task"].tolist()), "episodes": tables["episode/number"].tolist()}
    differs = [key for key in wanted if found[key] != wanted[key]]
    if differs:
        raise DatasetError(f"{path}: holds other episodes than it should ({', '.join(differs)} differ); delete it")
    return entry
