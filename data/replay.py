"""Replay buffer on disk: episode metadata in memory, frames read one by one and verified.

`E` episodes, `N` tasks. Steps and frames are numbered through the dataset: an episode of t steps has t + 1 frames, and
step s of episode e goes from frame s + e to frame s + e + 1.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data import codec
from data.manifest import read_manifest
from data.shards import Frame, ManifestEntry, Shard, require_shards, unpack_success
from sim.files import DatasetError

OBJECTS_BYTES = 500  # overhead of the Python objects of a cached frame


class Replay:
    """A dataset of episodes, opened by its manifest. It holds no open file, so it may cross a fork.

    Up to `cache_bytes` of encoded frames are cached in each process; the oldest entry is evicted first.
    """

    def __init__(self, folder: str | Path, cache_bytes: int = 0) -> None:
        self.folder = Path(folder)
        self.cache_bytes = cache_bytes
        manifest = read_manifest(self.folder)
        if not manifest.episodes:
            raise DatasetError(f"{self.folder}: the dataset holds no finished shard yet")
        self.size, self.frame_size = manifest.size, manifest.frame_size  # px: network input, stored frames
        self.renderer, self.split, self.randomise = manifest.renderer, manifest.split, list(manifest.randomise)
        entries = manifest.shards
        self.shards = [Shard(self.folder / entry.name, entry) for entry in entries]
        require_shards(shard.path for shard in self.shards)
        self.episode_task = _joined(entry.task for entry in entries)  # [E]
        self.episode_length = _joined(entry.length for entry in entries)  # [E], steps
        self.success = unpack_success(_joined(entry.success for entry in entries))  # bool [E, N], at every task
        self.episode_shard = np.repeat(np.arange(len(entries)), [len(entry.task) for entry in entries])
        self._first_in_shard = _joined(entry.first for entry in entries)
        self.num_episodes = len(self.episode_task)
        self.last_step = np.cumsum(self.episode_length) - 1  # [E]
        self._last_frame = self.last_step + np.arange(1, self.num_episodes + 1)
        self.num_steps = int(self.episode_length.sum())
        self._cache: dict[int, Frame] = {}
        self.cached_bytes = 0

    @functools.cached_property
    def episode_key(self) -> NDArray[np.int64]:
        """[E] digests that identify episodes wherever their shards lie: of frames and states (by checksum), task,
        number and origin."""
        return np.array([key for shard in self.shards for key in _keys(shard.entry)], np.int64)

    @property
    def digest(self) -> str:
        """SHA-256 of the episodes, in any order."""
        return hashlib.sha256(np.sort(self.episode_key).tobytes()).hexdigest()

    @property
    def env_options(self) -> dict[str, Any]:
        """Keyword arguments of the `PickPlaceEnv` in which these data were collected; checkpoints keep them."""
        return {"renderer": self.renderer, "randomise": self.randomise, "split": self.split}

    def require(self, size: int, renderer: str) -> None:
        """DatasetError if the data do not fit a policy of this image size (px) and renderer."""
        if (self.size, self.renderer) != (size, renderer):
            raise DatasetError(
                f"{self.folder}: {self.size} px, {self.renderer}: not the data of a policy of {size} px, {renderer}"
            )

    @property
    def own_success(self) -> NDArray[np.bool_]:
        """[E] success of each episode at the task it was collected for."""
        return self.success[np.arange(self.num_episodes), self.episode_task]

    def steps_of_tasks(self, num_tasks: int) -> NDArray[np.int64]:
        """[N] number of steps collected for each task."""
        return np.bincount(self.episode_task, self.episode_length, num_tasks).astype(np.int64)

    def steps_by_outcome(self, num_tasks: int) -> NDArray[np.int64]:
        """[2, N, N] number of steps in (failures, successes) at a target task (row), by source task (column)."""
        source = np.arange(num_tasks)[:, None] == self.episode_task
        successes = (self.success * self.episode_length[:, None]).T @ source.T
        return np.stack([self.steps_of_tasks(num_tasks) - successes, successes]).astype(np.int64)

    def episode_of(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Episode index of each step."""
        return np.searchsorted(self.last_step, steps, side="left")

    def steps_to_go(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Steps to the end of the episode, the step itself included: 1 at the last."""
        return self.last_step[self.episode_of(steps)] - steps + 1

    def frames_of(self, episode: int) -> range:
        """Frame numbers of an episode."""
        last = int(self.last_step[episode]) + episode + 1
        return range(last - int(self.episode_length[episode]), last + 1)

    def read(self, frames: NDArray[np.int64] | Sequence[int]) -> list[Frame]:
        """Encoded frames by number, in the order asked for."""
        wanted = np.asarray(frames, np.int64)
        found = {number: self._cache[number] for number in wanted.tolist() if number in self._cache}
        missing = np.array(sorted(set(wanted.tolist()) - found.keys()), np.int64)
        episode = np.searchsorted(self._last_frame, missing, side="left")
        position = self._first_in_shard[episode] + self.episode_length[episode] - (self._last_frame[episode] - missing)
        shard = self.episode_shard[episode]
        for begin, end in _runs(shard):
            read = self.shards[shard[begin]].frames(position[begin:end].tolist())
            found.update(zip(missing[begin:end].tolist(), read, strict=True))
        self._keep(found)
        return [found[number] for number in wanted.tolist()]

    def _keep(self, found: dict[int, Frame]) -> None:
        for number, frame in found.items() if self.cache_bytes else ():
            if number not in self._cache:
                self._cache[number] = frame
                self.cached_bytes += _size(frame)
        while self.cached_bytes > self.cache_bytes:
            self.cached_bytes -= _size(self._cache.pop(next(iter(self._cache))))

    def images(self, frames: NDArray[np.int64] | Sequence[int]) -> NDArray[np.uint8]:
        """Decoded frames, uint8 [B, H, W, 3]."""
        return np.stack([codec.decode(frame.image) for frame in self.read(frames)])


def _keys(entry: ManifestEntry) -> Iterator[int]:
    whole = f"{entry.index_crc32} {entry.frames} {entry.origin}"
    for episode in zip(entry.task, entry.number, entry.first, entry.length, strict=True):
        digest = hashlib.blake2b(f"{whole} {episode}".encode(), digest_size=8).digest()
        yield int.from_bytes(digest, "little", signed=True)


def _joined(parts: Iterable[list[int]]) -> NDArray[np.int64]:
    return np.array(list(itertools.chain.from_iterable(parts)), np.int64)


def _runs(values: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(begin, end) of each run of equal values."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return list(itertools.pairwise(edges)) if len(values) else []


def _size(frame: Frame) -> int:
    return len(frame.image) + frame.action.nbytes + frame.state.nbytes + frame.verdict.nbytes + OBJECTS_BYTES
