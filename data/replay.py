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
    """A dataset, opened and checked. Sharing it across a fork is safe: it holds no open file."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        self.size: int = manifest["size"]
        self.renderer: str = manifest["renderer"]
        self.randomise: list[str] = manifest["randomise"]
        self.split: str = manifest["split"]
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
        gripper, success, marks = [], [], []
        self.num_changed_verdicts = 0  # where today's detectors decide otherwise than those at collection
        for shard in self.shards:
            state = SceneState(shard.tables.pop("state"))
            gripper.append(np.stack([state["gripper_closed"], state["gripper_position"][:, 2]], axis=1))
            marks.append(landmarks(state))
            lengths = shard.tables["episode/length"]
            final = np.cumsum(lengths + 1) - 1
            decided = verdicts(SceneState(state.vector[final]))
            self.num_changed_verdicts += int((decided != shard.tables["verdict"][final]).sum())
            success.append(decided)
        self.gripper = np.concatenate(gripper)  # float32 [frames, 2]: closed (0/1), height (m)
        self.landmark = np.concatenate([m.value for m in marks])  # of every frame, as in sim/landmarks.py
        self.landmark_present = np.concatenate([m.present for m in marks])
        self.point = np.concatenate([m.point for m in marks])
        self.point_present = np.concatenate([m.point_present for m in marks])
        self.success = np.concatenate(success)  # bool [E, N]
        assert self.success.shape == (self.num_episodes, len(TASK_NAMES))

    def frames(self, indices: Iterable[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Frames by their number in the dataset: uint8 [B, H, W, 3]."""
        out = []
        for index in indices:
            shard = int(np.searchsorted(self._shard_first_frame, index, side="right")) - 1
            out.append(self.shards[shard].frame(int(index) - int(self._shard_first_frame[shard])))
        return np.stack(out)
