"""Replay shards: HDF5 files that are whole or absent, listed by a manifest that says what each must contain.

One shard holds a few episodes. Its keys (`E` episodes, `T` steps, `P` frames; an episode of t steps has t + 1 frames):

    episode/task        int64   [E]     index of the task it was collected for
    episode/length      int64   [E]     steps
    episode/terminated  bool    [E]     ended by the terminate command (else truncated at the horizon)
    episode/noise       float32 [E]     noise of the policy that collected it
    action              float32 [T, 5]  sim/actions.py: translation (m), yaw (rad), command
    state               float32 [P, S]  SceneState vector, sim/state.py
    verdict             bool    [P, N]  every task's detector on that state
    frame/bytes         uint8   [sum]   the JPEG files of all frames, one after another, contiguous in the file
    frame/offset        int64   [P + 1] where each begins
    frame/crc32         uint32  [P]     checksum of each

Each frame is stored once. The frames lie contiguously, so that readers map the file into memory and touch only the
frames they decode: no HDF5 lock, nothing open across a fork. Tables carry a CRC-32, the manifest the file's size.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data import jpeg
from sim.actions import ACTION_SIZE
from sim.state import SIM_VERSION, STATE_SIZE, STATE_VERSION
from sim.tasks import TASK_NAMES

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
CONFIG = "collect.json"
TABLES = (
    "episode/task",
    "episode/length",
    "episode/terminated",
    "episode/noise",
    "action",
    "state",
    "verdict",
    "frame/offset",
    "frame/crc32",
)


class DatasetError(ValueError):
    """A file of a dataset is missing, damaged or foreign; the message names it and says what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One episode of T steps. Arrays as in the table above, without the leading episode dimension."""

    task_index: int
    terminated: bool
    noise: float
    action: NDArray[np.float32]  # [T, 5]
    state: NDArray[np.float32]  # [T + 1, S]
    verdict: NDArray[np.bool_]  # [T + 1, N]
    frames: tuple[bytes, ...]  # T + 1 JPEG files

    def __post_init__(self) -> None:
        steps = len(self.action)
        assert self.action.shape == (steps, ACTION_SIZE)
        assert self.state.shape == (steps + 1, STATE_SIZE)
        assert self.verdict.shape == (steps + 1, len(TASK_NAMES))
        assert len(self.frames) == steps + 1


def write_atomic(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a DatasetError names the file where there is none."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:  # of JSON or of UTF-8
        raise DatasetError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise DatasetError(f"{path}: holds a {type(found).__name__} where a JSON object is expected")
    return found


def write_shard(path: Path, episodes: list[Episode], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Write the shard under a temporary name, flush, rename. Returns its row of the manifest."""
    frames = [frame for episode in episodes for frame in episode.frames]
    tables: dict[str, NDArray[Any]] = {
        "episode/task": np.array([episode.task_index for episode in episodes], np.int64),
        "episode/length": np.array([len(episode.action) for episode in episodes], np.int64),
        "episode/terminated": np.array([episode.terminated for episode in episodes], np.bool_),
        "episode/noise": np.array([episode.noise for episode in episodes], np.float32),
        "action": np.concatenate([episode.action for episode in episodes]),
        "state": np.concatenate([episode.state for episode in episodes]),
        "verdict": np.concatenate([episode.verdict for episode in episodes]),
        "frame/offset": np.cumsum([0, *(len(frame) for frame in frames)], dtype=np.int64),
        "frame/crc32": np.array([zlib.crc32(frame) for frame in frames], np.uint32),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with h5py.File(temporary, "w") as file:
        file.attrs.update(
            {
                "schema": SCHEMA_VERSION,
                "state_version": STATE_VERSION,
                "sim_version": SIM_VERSION,
                "tasks": json.dumps(TASK_NAMES),
                **attributes,
            }
        )
        for key, table in tables.items():
            dataset = file.create_dataset(key, data=table)
            dataset.attrs["crc32"] = zlib.crc32(np.ascontiguousarray(table).data)
        file.create_dataset("frame/bytes", data=np.frombuffer(b"".join(frames), np.uint8))
        file.flush()
    with temporary.open("rb") as flushed:
        os.fsync(flushed.fileno())
    os.replace(temporary, path)
    return describe(path)


def describe(path: Path) -> dict[str, Any]:
    """The manifest's row of a shard that lies on disk, from a checked read of it."""
    shard = Shard(path)
    return {
        "name": path.name,
        "bytes": path.stat().st_size,
        "episodes": len(shard.tables["episode/task"]),
        "steps": len(shard.tables["action"]),
    }


class Shard:
    """A checked, read-only view of one shard: tables in memory, frames read one by one; it keeps no file open."""

    def __init__(self, path: Path, expected_bytes: int | None = None) -> None:
        self.path = path
        if not path.is_file():
            raise DatasetError(f"{path}: the manifest lists this shard but it is missing; collect again to remake it")
        size = path.stat().st_size
        if expected_bytes is not None and size != expected_bytes:
            raise DatasetError(
                f"{path}: damaged shard, {size} bytes where the manifest says {expected_bytes}; "
                "delete it and collect again"
            )
        try:
            with h5py.File(path, "r") as file:
                self._read(file)
        except DatasetError:
            raise
        except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
            raise DatasetError(f"{path}: not a readable Switchyard shard ({error})") from error

    def _read(self, file: h5py.File) -> None:
        if "schema" not in file.attrs:
            raise DatasetError(f"{self.path}: an HDF5 file, but not a Switchyard shard (it has no schema attribute)")
        self.attributes: dict[str, Any] = dict(file.attrs)
        for key, wanted in (("schema", SCHEMA_VERSION), ("state_version", STATE_VERSION), ("sim_version", SIM_VERSION)):
            if self.attributes.get(key) != wanted:
                raise DatasetError(f"{self.path}: {key} {self.attributes.get(key)}, this version reads {key} {wanted}")
        if tuple(json.loads(self.attributes["tasks"])) != TASK_NAMES:
            raise DatasetError(f"{self.path}: recorded for the tasks {self.attributes['tasks']}, not for {TASK_NAMES}")
        self.tables: dict[str, NDArray[Any]] = {}
        for key in TABLES:
            table = file[key][()]
            if zlib.crc32(np.ascontiguousarray(table).data) != file[key].attrs["crc32"]:
                raise DatasetError(f"{self.path}: damaged shard, the checksum of {key} does not match")
            self.tables[key] = table
        frames = file["frame/bytes"]
        self._frames_at: int = frames.id.get_offset() or 0  # None where nothing was written
        episodes, steps = len(self.tables["episode/length"]), len(self.tables["action"])
        offsets = self.tables["frame/offset"]
        lengths_agree = (
            self.tables["episode/length"].sum() == steps
            and len(self.tables["state"]) == len(self.tables["verdict"]) == len(offsets) - 1 == steps + episodes
            and len(self.tables["frame/crc32"]) == steps + episodes
            and offsets[-1] == frames.shape[0]
            and self._frames_at > 0
        )
        if not lengths_agree:
            raise DatasetError(f"{self.path}: damaged shard, its tables disagree about how many steps it holds")

    def frame_bytes(self, index: int) -> NDArray[np.uint8]:
        """The JPEG file of one frame, checked, as uint8 [n]."""
        begin, end = (int(v) for v in self.tables["frame/offset"][index : index + 2])
        with self.path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), end - begin, self._frames_at + begin)
        if zlib.crc32(data) != self.tables["frame/crc32"][index]:
            raise DatasetError(f"{self.path}: damaged shard, the checksum of frame {index} does not match")
        return np.frombuffer(data, np.uint8)

    def frame(self, index: int) -> NDArray[np.uint8]:
        """One frame, uint8 [H, W, 3]."""
        return jpeg.decode(self.frame_bytes(index))


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise DatasetError(f"{folder}: no dataset here (no {MANIFEST}); make one with `python -m data collect`")
    manifest = read_json(path)
    if manifest.get("schema") != SCHEMA_VERSION or not isinstance(manifest.get("shards"), list):
        raise DatasetError(f"{path}: not a Switchyard manifest of schema {SCHEMA_VERSION}")
    rows_are_whole = all(isinstance(row, dict) and {"name", "bytes"} <= row.keys() for row in manifest["shards"])
    if not {"size", "renderer", "randomise", "split", "episodes"} <= manifest.keys() or not rows_are_whole:
        raise DatasetError(f"{path}: damaged manifest, an entry is missing")
    return manifest
