"""Manifests: the list of a dataset's shards, with what each episode is, so that opening a dataset opens no shard.

A manifest may list shards of other folders, and some episodes of a shard: merging and splitting copy no picture. It
carries its own checksum, and those by which everything in the shards is checked (data/shards.py).
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.shards import SCHEMA_VERSION, DatasetError, Row, read_json, write_whole
from sim.state import SIM_VERSION
from sim.tasks import TASK_NAMES

MANIFEST = "manifest.json"
SHARED = ("size", "frame_size", "renderer", "split")  # what datasets must have in common to be merged
PER_EPISODE = ("task", "first", "length", "success")

Manifest = dict[str, Any]


def write_manifest(folder: Path, about: dict[str, Any], rows: Sequence[Row]) -> Manifest:
    """`about` holds size, frame_size, renderer, split and randomise; `rows` come from `write_shard`."""
    manifest = {
        "schema": SCHEMA_VERSION,
        "sim_version": SIM_VERSION,
        "tasks": list(TASK_NAMES),
        **about,
        "episodes": sum(len(row["task"]) for row in rows),
        "steps": sum(sum(row["length"]) for row in rows),
        "shards": list(rows),
    }
    manifest["crc32"] = _checksum(manifest)
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in manifest.items() if key != "shards"]
    shards = ",\n".join(json.dumps(row) for row in rows)  # one a line: a person may read it, and `diff`
    write_whole(folder / MANIFEST, ("{" + ",\n".join(lines) + f',\n"shards": [\n{shards}\n]}}\n').encode())
    return manifest


def read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise DatasetError(f"{folder}: no dataset here (no {MANIFEST}); make one with `python -m data collect`")
    manifest = read_json(path)
    if manifest.get("schema") != SCHEMA_VERSION:
        raise DatasetError(f"{path}: schema {manifest.get('schema')}, this version reads schema {SCHEMA_VERSION}")
    if manifest.get("crc32") != _checksum(manifest):
        raise DatasetError(
            f"{path}: damaged manifest, its checksum does not match; `python -m data collect` remakes it"
        )
    if (manifest["sim_version"], tuple(manifest["tasks"])) != (SIM_VERSION, TASK_NAMES):
        raise DatasetError(
            f"{path}: recorded in world {manifest['sim_version']} with the tasks {manifest['tasks']}, "
            f"this is world {SIM_VERSION} with {TASK_NAMES}"
        )
    return manifest


def _checksum(manifest: Manifest) -> int:
    rest = {key: value for key, value in manifest.items() if key != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def merge(out: Path, folders: Sequence[Path], replace: bool = False) -> Manifest:
    """One dataset of several: a manifest in `out` that lists all their shards where they lie.

    `replace`: the folder may hold an earlier manifest. Pictures stay where they are, so the merged folders must too."""
    if not folders:
        raise DatasetError("nothing to merge: name at least one dataset")
    manifests = [read_manifest(folder) for folder in folders]
    for key in SHARED:
        values = {str(folder): manifest[key] for folder, manifest in zip(folders, manifests, strict=True)}
        if len(set(values.values())) > 1:
            raise DatasetError(f"cannot merge: {key} differs, {values}")
    rows: list[Row] = []
    seen: dict[tuple[Path, int], Path] = {}
    for folder, manifest in zip(folders, manifests, strict=True):
        for row in manifest["shards"]:
            shard = (folder / row["name"]).resolve()
            for first in row["first"]:
                if (shard, first) in seen:
                    raise DatasetError(f"{folder}: holds an episode of {shard} that {seen[shard, first]} holds too")
                seen[shard, first] = folder
            rows.append({**row, "name": os.path.relpath(shard, out.resolve())})
    randomise = sorted({factor for manifest in manifests for factor in manifest["randomise"]})
    about = {key: manifests[0][key] for key in SHARED} | {"randomise": randomise}
    if not replace:
        check_new(out)
    out.mkdir(parents=True, exist_ok=True)
    return write_manifest(out, about, rows)


def select(out: Path, folder: Path, wanted: Sequence[Sequence[int]]) -> Manifest:
    """A dataset of some episodes of another: `wanted` numbers them within each of its shards."""
    manifest = read_manifest(folder)
    rows = []
    for row, numbers in zip(manifest["shards"], wanted, strict=True):
        if numbers:
            name = os.path.relpath((folder / row["name"]).resolve(), out.resolve())
            rows.append({**row, "name": name, **{key: [row[key][n] for n in numbers] for key in PER_EPISODE}})
    check_new(out)
    out.mkdir(parents=True, exist_ok=True)
    return write_manifest(out, {key: manifest[key] for key in (*SHARED, "randomise")}, rows)


def check_new(out: Path) -> None:
    """DatasetError where there is something in this folder."""
    if out.exists() and any(not entry.name.endswith(".tmp") for entry in out.iterdir()):
        raise DatasetError(f"{out}: not empty; choose another folder")
