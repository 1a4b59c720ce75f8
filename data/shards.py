"""Shards: HDF5 files of a few episodes each, written atomically, every byte covered by a checksum.

Keys (`E` episodes, `P` frames, `N` tasks, `S` numbers of a state; an episode of t steps has t + 1 frames):

    episode/task        int64   [E]     index of the task it was collected for
    episode/number      int64   [E]     with the task and the attributes `seed` and `source`: the episode's random seed
    episode/length      int64   [E]     steps t
    episode/terminated  bool    [E]     ended by the terminate command (else truncated at the horizon)
    episode/noise       float32 [E]     noise of the collecting policy
    frame/action        float32 [P, 5]  taken at this frame: translation (m), yaw (rad), command; 0 at the last frame
    frame/state         float32 [P, S]  SceneState vector, sim/state.py
    frame/verdict       bool    [P, N]  output of every task's success detector on that state
    frame/image         uint8   [sum]   the encoded images one after another: JPEG, or raw pixels under Zstandard
    frame/offset        int64   [P + 1] where each image begins
    frame/crc32         uint32  [P]     of each frame's image, state, verdict and action together

Each frame is stored once. All tables are contiguous in the file, and the shard's entry in the manifest gives their
offsets: a reader takes a frame by `pread` alone, parses no HDF5, holds no file open, and trusts nothing that a checksum
does not cover. After the HDF5 file come eight bytes, `SYRD` and its CRC-32, by which a shard that no manifest lists is
verified before HDF5 parses it.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data.hdf5 import hdf5_image
from sim.actions import ACTION_SIZE
from sim.files import DatasetError, is_junk, write_atomic
from sim.state import SIM_VERSION, STATE_SIZE, STATE_VERSION
from sim.tasks import TASK_NAMES

SCHEMA_VERSION = 3
EPISODE_TABLES = ("episode/task", "episode/number", "episode/length", "episode/terminated", "episode/noise")
FRAME_TABLES = ("frame/action", "frame/state", "frame/verdict", "frame/image", "frame/offset", "frame/crc32")
VERSIONS = {"schema": SCHEMA_VERSION, "state_version": STATE_VERSION, "sim_version": SIM_VERSION}
ATTRIBUTES = {*VERSIONS, "tasks", "policy", "renderer", "size", "split", "randomise", "seed", "source"}
ORIGIN = ("seed", "source", "policy", "noise", "checkpoint_sha256", "randomise", "split", "renderer", "size")
MADE_AGAIN = "the `collect` command that made it makes it again"
MOVED_ALONE = (
    "this dataset lists shards of other folders relative to itself: move it together with them, or make it again with "
    "`merge --copy`"
)
TRAILER, MAGIC = struct.Struct("<4sI"), b"SYRD"
ROW_BYTES = {"frame/action": 4 * ACTION_SIZE, "frame/state": 4 * STATE_SIZE, "frame/verdict": len(TASK_NAMES)}


@dataclass(frozen=True, kw_only=True)
class ManifestEntry:
    """A manifest's entry for one shard, with the metadata of each listed episode [E], which may be a subset."""

    name: str  # path of the file, relative to the manifest's folder
    bytes: int
    crc32: int  # of the file
    frames: int  # in the whole shard
    index_crc32: int  # of frame/offset and frame/crc32
    at: dict[str, int]  # key of a frame table -> its offset in the file
    policy: str  # name of the collecting policy
    origin: str  # the attributes ORIGIN; with task and number they identify an episode
    task: list[int]  # [E]
    number: list[int]  # [E]
    first: list[int]  # [E], number of the first frame within the shard
    length: list[int]  # [E], steps
    success: list[int]  # [E], bit i: the detector of task i accepts the last frame


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One episode of T steps."""

    task_index: int
    number: int
    terminated: bool
    noise: float
    action: NDArray[np.float32]  # [T, 5]
    state: NDArray[np.float32]  # [T + 1, S]
    verdict: NDArray[np.bool_]  # [T + 1, N]
    frames: tuple[bytes, ...]  # T + 1 encoded images

    def __post_init__(self) -> None:
        steps = len(self.action)
        assert self.action.shape == (steps, ACTION_SIZE)
        assert self.state.shape == (steps + 1, STATE_SIZE)
        assert self.verdict.shape == (steps + 1, len(TASK_NAMES))
        assert len(self.frames) == steps + 1


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame as it is stored."""

    image: bytes  # encoded, data/codec.py
    action: NDArray[np.float32]  # [5]
    state: NDArray[np.float32]  # [S]
    verdict: NDArray[np.bool_]  # [N]


def shard_files(folder: Path) -> list[Path]:
    """The HDF5 files of this folder, sorted by name; junk files (sim/files.py) are skipped."""
    return sorted(path for path in folder.glob("*.h5") if not is_junk(path))


def write_shard(path: Path, episodes: Sequence[Episode], attributes: Mapping[str, Any]) -> ManifestEntry:
    """Write the shard atomically; returns its manifest entry. Equal arguments give equal bytes."""
    pad = np.zeros((1, ACTION_SIZE), np.float32)
    tables: dict[str, NDArray[Any]] = {
        "episode/task": np.array([episode.task_index for episode in episodes], np.int64),
        "episode/number": np.array([episode.number for episode in episodes], np.int64),
        "episode/length": np.array([len(episode.action) for episode in episodes], np.int64),
        "episode/terminated": np.array([episode.terminated for episode in episodes], np.bool_),
        "episode/noise": np.array([episode.noise for episode in episodes], np.float32),
        "frame/action": np.concatenate([part for episode in episodes for part in (episode.action, pad)]),
        "frame/state": np.concatenate([episode.state for episode in episodes]),
        "frame/verdict": np.concatenate([episode.verdict for episode in episodes]),
    }
    images = [image for episode in episodes for image in episode.frames]
    rest = zip(*(tables[key] for key in ("frame/action", "frame/state", "frame/verdict")), strict=True)
    sums = [frame_crc32(image, *(row.tobytes() for row in rows)) for image, rows in zip(images, rest, strict=True)]
    tables["frame/image"] = np.frombuffer(b"".join(images), np.uint8)
    tables["frame/offset"] = np.cumsum([0, *(len(image) for image in images)], dtype=np.int64)
    tables["frame/crc32"] = np.array(sums, np.uint32)
    content = hdf5_image(path.name, tables, {**VERSIONS, "tasks": json.dumps(TASK_NAMES), **attributes})
    write_atomic(path, content + TRAILER.pack(MAGIC, zlib.crc32(content)))
    return read_shard(path)[0]


def frame_crc32(image: bytes, action: bytes, state: bytes, verdict: bytes) -> int:
    return zlib.crc32(verdict, zlib.crc32(state, zlib.crc32(action, zlib.crc32(image))))


def index_crc32(offset: NDArray[np.int64], crc32: NDArray[np.uint32]) -> int:
    return zlib.crc32(crc32.tobytes(), zlib.crc32(offset.tobytes()))


def read_shard(path: Path) -> tuple[ManifestEntry, dict[str, NDArray[Any]], dict[str, Any]]:
    """Parse and verify a whole shard -> (manifest entry, tables without the images, attributes)."""
    if not path.is_file():
        raise DatasetError(f"{path}: missing; {MADE_AGAIN}")
    content = path.read_bytes()
    payload, trailer = content[: -TRAILER.size], content[-TRAILER.size :]
    if len(trailer) < TRAILER.size or TRAILER.unpack(trailer) != (MAGIC, zlib.crc32(payload)):
        raise DatasetError(f"{path}: damaged, or not a Switchyard shard: the checksum at its end does not match")
    try:
        with h5py.File(io.BytesIO(payload), "r") as file:
            attributes = dict(file.attrs)
            _check_attributes(path, attributes)
            tables = {key: file[key][()] for key in (*EPISODE_TABLES, *FRAME_TABLES)}
            at = {key: file[key].id.get_offset() for key in FRAME_TABLES}
    except DatasetError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise DatasetError(f"{path}: not a readable Switchyard shard ({error})") from error
    lengths, offset = tables["episode/length"], tables["frame/offset"]
    frames = len(tables["frame/state"])
    shapes = {
        **{key: (len(lengths),) for key in EPISODE_TABLES},
        "frame/action": (frames, ACTION_SIZE),
        "frame/state": (frames, STATE_SIZE),
        "frame/verdict": (frames, len(TASK_NAMES)),
        "frame/image": (int(offset[-1]) if offset.size else 0,),
        "frame/offset": (frames + 1,),
        "frame/crc32": (frames,),
    }
    wrong = [key for key, shape in shapes.items() if tables[key].shape != shape]
    if wrong or not len(lengths) or (lengths < 1).any() or (lengths + 1).sum() != frames or None in at.values():
        raise DatasetError(f"{path}: damaged shard, its tables disagree about how much it holds {wrong or ''}".strip())
    first = np.cumsum(lengths + 1) - (lengths + 1)
    entry = ManifestEntry(
        name=path.name,
        bytes=len(content),
        crc32=zlib.crc32(content),
        frames=frames,
        index_crc32=index_crc32(offset, tables["frame/crc32"]),
        at=at,
        policy=str(attributes["policy"]),
        origin=", ".join(f"{key} {attributes[key]}" for key in ORIGIN if attributes.get(key, "") != ""),
        task=tables["episode/task"].tolist(),
        number=tables["episode/number"].tolist(),
        first=first.tolist(),
        length=lengths.tolist(),
        success=pack_success(tables["frame/verdict"][first + lengths]),
    )
    Shard(path, entry).frames(range(frames))
    del tables["frame/image"]
    return entry, tables, attributes


def read_listed(path: Path, entry: ManifestEntry) -> bytes:
    """The bytes of a listed shard; DatasetError if they differ from its manifest entry."""
    content = path.read_bytes()
    if zlib.crc32(content) != entry.crc32:
        raise DatasetError(
            f"{path}: damaged shard, the checksum of the file does not match; delete it and collect again"
        )
    return content


def _check_attributes(path: Path, attributes: dict[str, Any]) -> None:
    missing = sorted(ATTRIBUTES - attributes.keys())
    if missing:
        raise DatasetError(f"{path}: an HDF5 file, but not a Switchyard shard (it has no {missing[0]} attribute)")
    for key, wanted in VERSIONS.items():
        if attributes.get(key) != wanted:
            raise DatasetError(f"{path}: {key} {attributes.get(key)}, this version reads {key} {wanted}")
    if tuple(json.loads(attributes["tasks"])) != TASK_NAMES:
        raise DatasetError(f"{path}: recorded for the tasks {attributes['tasks']}, not for {TASK_NAMES}")


def require_shards(paths: Iterable[Path]) -> None:
    """DatasetError if one of these shards is missing; lists folders, opens no shard."""
    wanted = sorted(set(paths))
    present = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in {p.parent for p in wanted}}
    missing = [path for path in wanted if path.name not in present[path.parent]]
    if missing:
        raise DatasetError(f"{missing[0]}: missing, {len(missing)} of {len(wanted)} shards are; {_remedy(missing[0])}")


def _remedy(path: Path) -> str:
    """Advice for a missing shard; a shard of another folder is listed as `FOLDER/../OTHER/NAME`."""
    return MADE_AGAIN if path == Path(os.path.normpath(path)) else MOVED_ALONE


def successes(entry: ManifestEntry, task_index: int) -> list[bool]:
    """Success of each listed episode at this task."""
    return [success >> task_index & 1 > 0 for success in entry.success]


def pack_success(success: NDArray[np.bool_]) -> list[int]:
    """Success bool [E, N] -> a bit mask for each episode, bit i for task i, as the manifest keeps it."""
    return [int(v) for v in success @ (1 << np.arange(success.shape[1], dtype=np.int64))]


def unpack_success(packed: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Bit masks [E] -> success bool [E, N]."""
    return (packed[:, None] >> np.arange(len(TASK_NAMES))) & 1 > 0


class Shard:
    """Random access to the frames of one shard by its manifest entry; opens no file before the first read."""

    def __init__(self, path: Path, entry: ManifestEntry) -> None:
        self.path, self.entry = path, entry
        self._index: tuple[NDArray[np.int64], NDArray[np.uint32]] | None = None

    def frames(self, numbers: Sequence[int]) -> list[Frame]:
        """Read and verify these frames; DatasetError if the file is not the one that the manifest lists."""
        try:
            handle = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            text = f"the manifest lists this shard but it is missing; {_remedy(self.path)}"
            raise DatasetError(f"{self.path}: {text}") from None
        try:
            if self._index is None:
                self._index = self._read_index(handle)
            return [self._read_frame(handle, number, *self._index) for number in numbers]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        finally:
            os.close(handle)

    def _read_index(self, handle: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        size, at = os.fstat(handle).st_size, self.entry.at
        if size != self.entry.bytes:
            raise DatasetError(
                f"{self.path}: {size} bytes where the manifest says {self.entry.bytes}: damaged, or another shard"
            )
        frames = self.entry.frames
        offset = np.frombuffer(os.pread(handle, 8 * (frames + 1), at["frame/offset"]), np.int64)
        crc32 = np.frombuffer(os.pread(handle, 4 * frames, at["frame/crc32"]), np.uint32)
        if index_crc32(offset, crc32) != self.entry.index_crc32:
            raise DatasetError(f"{self.path}: damaged shard, the checksum of its index does not match")
        return offset, crc32

    def _read_frame(self, handle: int, number: int, offset: NDArray[np.int64], crc32: NDArray[np.uint32]) -> Frame:
        at = self.entry.at
        begin, end = int(offset[number]), int(offset[number + 1])
        image = os.pread(handle, end - begin, at["frame/image"] + begin)
        action, state, verdict = (os.pread(handle, n, at[key] + number * n) for key, n in ROW_BYTES.items())
        if frame_crc32(image, action, state, verdict) != crc32[number]:
            raise DatasetError(f"{self.path}: damaged shard, the checksum of frame {number} does not match")
        return Frame(
            image=image,
            action=np.frombuffer(action, np.float32),
            state=np.frombuffer(state, np.float32),
            verdict=np.frombuffer(verdict, np.bool_),
        )
