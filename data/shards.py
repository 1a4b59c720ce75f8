"""Shards: HDF5 files of a few episodes each, whole or absent, every byte under a checksum.

Keys (`E` episodes, `P` frames, `N` tasks, `S` numbers of a state; an episode of t steps has t + 1 frames):

    episode/task        int64   [E]     index of the task it was collected for
    episode/number      int64   [E]     with the attributes `seed` and `source`, and the task, all its randomness
    episode/length      int64   [E]     steps t
    episode/terminated  bool    [E]     ended by the terminate command (else truncated at the horizon)
    episode/noise       float32 [E]     noise of the policy that acted
    frame/action        float32 [P, 5]  taken at this frame: translation (m), yaw (rad), command; 0 at an episode's last
    frame/state         float32 [P, S]  SceneState vector, sim/state.py
    frame/verdict       bool    [P, N]  every task's detector on that state
    frame/image         uint8   [sum]   the pictures one after another, each a JPEG file or Zstandard of its numbers
    frame/offset        int64   [P + 1] where each begins
    frame/crc32         uint32  [P]     of each frame's picture, state, verdict and action together

Each frame is stored once. All tables are contiguous in the file, and the manifest's row of a shard says where: a reader
takes a frame by `pread` alone, parses no HDF5, holds no file open, and trusts nothing that a checksum does not cover.
After the HDF5 file come eight bytes, `SYRD` and its CRC-32: a shard that no manifest lists is checked by them before
HDF5 sees it.
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
class Row:
    """What a manifest tells of a shard, and of each episode [E] that it lists: not necessarily all of the shard's."""

    name: str  # path of the file, relative to the manifest's folder
    bytes: int
    crc32: int  # of the file
    frames: int  # in the whole shard
    index_crc32: int  # of frame/offset and frame/crc32
    at: dict[str, int]  # key of a frame table -> where it begins in the file
    policy: str  # name of what acted
    origin: str  # with a task and a number, what makes an episode the one it is: of the attributes, those of ORIGIN
    task: list[int]  # [E]
    number: list[int]  # [E]
    first: list[int]  # [E], number of the first frame within the shard
    length: list[int]  # [E], steps
    success: list[int]  # [E], bit i: the detector of task i accepts the end


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
    frames: tuple[bytes, ...]  # T + 1 pictures

    def __post_init__(self) -> None:
        steps = len(self.action)
        assert self.action.shape == (steps, ACTION_SIZE)
        assert self.state.shape == (steps + 1, STATE_SIZE)
        assert self.verdict.shape == (steps + 1, len(TASK_NAMES))
        assert len(self.frames) == steps + 1


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame as it is stored."""

    picture: bytes
    action: NDArray[np.float32]  # [5]
    state: NDArray[np.float32]  # [S]
    verdict: NDArray[np.bool_]  # [N]


def shard_files(folder: Path) -> list[Path]:
    """What may be shards in this folder, in the order of their names."""
    return sorted(path for path in folder.glob("*.h5") if not is_junk(path))


def write_shard(path: Path, episodes: Sequence[Episode], attributes: Mapping[str, Any]) -> Row:
    """Write the shard whole or not at all; returns its row of the manifest. Equal arguments give equal bytes."""
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
    pictures = [picture for episode in episodes for picture in episode.frames]
    rest = zip(*(tables[key] for key in ("frame/action", "frame/state", "frame/verdict")), strict=True)
    sums = [
        frame_crc32(picture, *(row.tobytes() for row in rows)) for picture, rows in zip(pictures, rest, strict=True)
    ]
    tables["frame/image"] = np.frombuffer(b"".join(pictures), np.uint8)
    tables["frame/offset"] = np.cumsum([0, *(len(picture) for picture in pictures)], dtype=np.int64)
    tables["frame/crc32"] = np.array(sums, np.uint32)
    content = hdf5_image(path.name, tables, {**VERSIONS, "tasks": json.dumps(TASK_NAMES), **attributes})
    write_atomic(path, content + TRAILER.pack(MAGIC, zlib.crc32(content)))
    return read_shard(path)[0]


def frame_crc32(picture: bytes, action: bytes, state: bytes, verdict: bytes) -> int:
    return zlib.crc32(verdict, zlib.crc32(state, zlib.crc32(action, zlib.crc32(picture))))


def index_crc32(offset: NDArray[np.int64], crc32: NDArray[np.uint32]) -> int:
    return zlib.crc32(crc32.tobytes(), zlib.crc32(offset.tobytes()))


def read_shard(path: Path) -> tuple[Row, dict[str, NDArray[Any]], dict[str, Any]]:
    """Parse and verify a whole shard -> its row of the manifest, its tables (but the pictures), its attributes."""
    if not path.is_file():
        raise DatasetError(f"{path}: missing; {MADE_AGAIN}")
    content = path.read_bytes()
    body, trailer = content[: -TRAILER.size], content[-TRAILER.size :]
    if len(trailer) < TRAILER.size or TRAILER.unpack(trailer) != (MAGIC, zlib.crc32(body)):
        raise DatasetError(f"{path}: damaged, or not a Switchyard shard: the checksum at its end does not match")
    try:
        with h5py.File(io.BytesIO(body), "r") as file:
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
    row = Row(
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
        success=pack_verdicts(tables["frame/verdict"][first + lengths]),
    )
    Shard(path, row).frames(range(frames))
    del tables["frame/image"]
    return row, tables, attributes


def read_listed(path: Path, row: Row) -> bytes:
    """The file that a manifest's row describes; DatasetError where it is another."""
    content = path.read_bytes()
    if zlib.crc32(content) != row.crc32:
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


def require(paths: Iterable[Path]) -> None:
    """DatasetError where one of these shards is not there; folders are listed, no shard is opened."""
    wanted = sorted(set(paths))
    present = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in {p.parent for p in wanted}}
    missing = [path for path in wanted if path.name not in present[path.parent]]
    if missing:
        raise DatasetError(f"{missing[0]}: missing, {len(missing)} of {len(wanted)} shards are; {_remedy(missing[0])}")


def _remedy(path: Path) -> str:
    """What to do about a shard that is missing; one of another folder is listed as `FOLDER/../OTHER/NAME`."""
    return MADE_AGAIN if path == Path(os.path.normpath(path)) else MOVED_ALONE


def successes(row: Row, task_index: int) -> list[bool]:
    """Of the episodes that a row lists: whether the task's detector accepts the end."""
    return [success >> task_index & 1 > 0 for success in row.success]


def pack_verdicts(verdict: NDArray[np.bool_]) -> list[int]:
    """bool [E, N] -> one number an episode, bit i for task i: how the manifest tells success."""
    return [int(v) for v in verdict @ (1 << np.arange(verdict.shape[1], dtype=np.int64))]


def unpack_verdicts(packed: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[E] -> bool [E, N]."""
    return (packed[:, None] >> np.arange(len(TASK_NAMES))) & 1 > 0


class Shard:
    """Frames of one shard, as the manifest's row describes it. Nothing is read before the first frame."""

    def __init__(self, path: Path, row: Row) -> None:
        self.path, self.row = path, row
        self._index: tuple[NDArray[np.int64], NDArray[np.uint32]] | None = None

    def frames(self, numbers: Sequence[int]) -> list[Frame]:
        """These frames, checked. DatasetError where the file is not the one that the manifest lists."""
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
        size, at = os.fstat(handle).st_size, self.row.at
        if size != self.row.bytes:
            raise DatasetError(
                f"{self.path}: {size} bytes where the manifest says {self.row.bytes}: damaged, or another shard"
            )
        frames = self.row.frames
        offset = np.frombuffer(os.pread(handle, 8 * (frames + 1), at["frame/offset"]), np.int64)
        crc32 = np.frombuffer(os.pread(handle, 4 * frames, at["frame/crc32"]), np.uint32)
        if index_crc32(offset, crc32) != self.row.index_crc32:
            raise DatasetError(f"{self.path}: damaged shard, the checksum of its index does not match")
        return offset, crc32

    def _read_frame(self, handle: int, number: int, offset: NDArray[np.int64], crc32: NDArray[np.uint32]) -> Frame:
        at = self.row.at
        begin, end = int(offset[number]), int(offset[number + 1])
        picture = os.pread(handle, end - begin, at["frame/image"] + begin)
        action, state, verdict = (os.pread(handle, n, at[key] + number * n) for key, n in ROW_BYTES.items())
        if frame_crc32(picture, action, state, verdict) != crc32[number]:
            raise DatasetError(f"{self.path}: damaged shard, the checksum of frame {number} does not match")
        return Frame(
            picture=picture,
            action=np.frombuffer(action, np.float32),
            state=np.frombuffer(state, np.float32),
            verdict=np.frombuffer(verdict, np.bool_),
        )
