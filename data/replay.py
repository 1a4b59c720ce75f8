"""Replay: the small tables of a whole dataset in memory, its frames on disk, every task's reward recomputed.

`E` episodes, `T` steps, `N` tasks. A step is a transition (s, a, s'): frames `step + episode` and `step + episode + 1`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.shards import DatasetError, Shard, read_manifest
from sim.landmarks import landmarks
from sim.state import SceneState
from sim.tasks import TASK_NAMES, verdicts


class Replay:
    """A dataset, opened and checked. Sharing across a fork is safe: frames are read through memory maps."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        self.size: int = manifest["size"]
        self.renderer: str = manifest["renderer"]
        self.shards = [Shard(self.folder / row["name"], row["bytes"]) for row in manifest["shards"]]
        if not self.shards:
            raise DatasetError(f"{self.folder}: the dataset holds no finished shard yet")
        self.episode_task = self._join("episode/task")
        self.episode_length = self._join("episode/length")
        self.action = self._join("action")
        self.num_episodes, self.num_steps = len(self.episode_task), len(self.action)
        last_step = np.cumsum(self.episode_length) - 1
        self.step_episode = np.repeat(np.arange(self.num_episodes), self.episode_length)
        self.step_is_last = np.zeros(self.num_steps, np.bool_)
        self.step_is_last[last_step] = True
        self._shard_first_frame = np.cumsum([0, *(len(s.tables["state"]) for s in self.shards)])
        self._read_states(last_step)

    def _join(self, key: str) -> NDArray[Any]:
        return np.concatenate([shard.tables[key] for shard in self.shards])

    def _read_states(self, last_step: NDArray[np.int64]) -> None:
        """Gripper readings of every frame; success [E, N] of every task, decided again from the stored states."""
        closed, height, success, marks = [], [], [], []
        for shard in self.shards:
            state = SceneState(shard.tables.pop("state"))
            closed.append(state["gripper_closed"])
            height.append(state["gripper_position"][:, 2])
            marks.append(landmarks(state))
            lengths = shard.tables["episode/length"]
            final = np.cumsum(lengths + 1) - 1
            decided = verdicts(SceneState(state.vector[final]))
            if not np.array_equal(decided, shard.tables["verdict"][final]):
                raise DatasetError(f"{shard.path}: its stored verdicts differ from today's detectors: collect it again")
            success.append(decided)
        self.gripper_closed = np.concatenate(closed).astype(np.float32)
        self.gripper_height = np.concatenate(height).astype(np.float32)
        self.landmark = np.concatenate([m.value for m in marks])  # of every frame, as in sim/landmarks.py
        self.landmark_present = np.concatenate([m.present for m in marks])
        self.point = np.concatenate([m.point for m in marks])
        self.point_visible = np.concatenate([m.visible for m in marks])
        self.success = np.concatenate(success)  # bool [E, N]
        assert self.success.shape == (self.num_episodes, len(TASK_NAMES))

    def frames(self, indices: Iterable[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Frames by their number in the dataset: uint8 [B, H, W, 3]."""
        out = []
        for index in indices:
            shard = int(np.searchsorted(self._shard_first_frame, index, side="right")) - 1
            out.append(self.shards[shard].frame(int(index) - int(self._shard_first_frame[shard])))
        return np.stack(out)
