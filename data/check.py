"""`python -m data check`: reads everything that a dataset holds and says what is wrong where."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data import codec
from data.manifest import PER_EPISODE, read_manifest
from data.shards import DatasetError, Row, Shard, read_shard
from sim import actions
from sim.parallel import run_jobs
from sim.state import SceneState
from sim.tasks import TASK_NAMES, TASKS, verdicts

Key = tuple[str, int, int]  # origin, task, number: what makes an episode the one it is
ORIGIN = ("seed", "source", "policy", "noise", "checkpoint_sha256", "randomise", "split", "renderer", "size")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Of one shard: what is wrong, and which episodes it holds."""

    wrong: tuple[str, ...]
    episodes: tuple[Key, ...] = ()
    frames: int = 0


def check(folder: Path, workers: int = 1) -> tuple[int, list[str]]:
    """Frames read, and what is wrong: file by file, empty where all is well. DatasetError without a manifest."""
    manifest = read_manifest(folder)
    side = manifest["frame_size"]
    wrong: list[str] = []
    seen: dict[Key, str] = {}
    frames = 0
    about = (folder, side, manifest["renderer"])
    rows = manifest["shards"]
    results = map(Checker(*about), rows) if workers == 1 else run_jobs(Checker, about, rows, workers)
    for row, found in sorted(results, key=lambda pair: str(pair[0]["name"])):
        wrong += found.wrong
        frames += found.frames
        for key in found.episodes:
            if key in seen:
                wrong.append(
                    f"{folder / row['name']}: holds episode {key[2]} of {TASK_NAMES[key[1]]}, as {seen[key]} does"
                )
            seen[key] = row["name"]
    return frames, wrong


class Checker:
    """Reads one shard after another."""

    def __init__(self, folder: Path, side: int, renderer: str) -> None:
        self._folder, self._side, self._renderer = folder, side, renderer

    def __call__(self, row: Row) -> tuple[Row, Finding]:
        try:
            return row, self._read(row)
        except (DatasetError, OSError) as error:
            return row, Finding(wrong=(str(error),))

    def _read(self, row: Row) -> Finding:
        path = self._folder / row["name"]
        shard = Shard(path, row)
        shard.frames([0])  # is it the file that the manifest lists?
        if zlib.crc32(path.read_bytes()) != row["crc32"]:
            raise DatasetError(f"{path}: damaged shard, the checksum of the file does not match")
        real, tables, attributes = read_shard(path)
        of_shard = [key for key in real if key not in ("name", *PER_EPISODE)]
        wrong = [f"the manifest says otherwise: {key}" for key in of_shard if real[key] != row[key]]
        place = {first: number for number, first in enumerate(real["first"])}
        chosen = [place.get(first, -1) for first in row["first"]]
        if -1 in chosen or any([real[key][n] for n in chosen] != row[key] for key in PER_EPISODE):
            wrong.append("the manifest says otherwise of its episodes")
        if attributes["renderer"] != self._renderer:
            wrong.append(f"rendered by {attributes['renderer']}, its dataset by {self._renderer}")
        wrong += self._tables(tables)
        listed = [
            first + k for first, length in zip(row["first"], row["length"], strict=True) for k in range(length + 1)
        ]
        for number, frame in zip(listed, shard.frames(listed), strict=True):
            try:
                codec.decode(frame.picture, np.empty((self._side, self._side, 3), np.uint8))
            except ValueError as error:
                wrong.append(f"frame {number}: {error}")
        origin = "|".join(str(attributes.get(key, "")) for key in ORIGIN)
        keys = zip(tables["episode/task"].tolist(), tables["episode/number"].tolist(), strict=True)
        episodes = [(origin, task, number) for task, number in keys]
        return Finding(
            wrong=tuple(f"{path}: {text}" for text in wrong),
            episodes=tuple(episodes[n] for n in chosen if n >= 0),
            frames=len(listed),
        )

    def _tables(self, tables: dict[str, NDArray[Any]]) -> list[str]:
        state, action = tables["frame/state"], tables["frame/action"]
        length, task = tables["episode/length"], tables["episode/task"]
        last = np.cumsum(length + 1) - 1
        acted = np.ones(len(action), np.bool_)
        acted[last] = False
        if not ((task >= 0) & (task < len(TASK_NAMES))).all():
            return ["an episode of no known task"]
        horizon = np.array([spec.horizon for spec in TASKS.values()])[task]
        changed = (verdicts(SceneState(state)) != tables["frame/verdict"]).any(axis=1)
        found = {
            "a state that is not finite": not np.isfinite(state).all(),
            "an action that is not finite": not np.isfinite(action).all(),
            "an action out of bounds": (np.abs(action[:, :4]) > actions.BOUNDS + 1e-6).any(),
            "a command that is none": not np.isin(action[:, 4], range(len(actions.COMMANDS))).all(),
            "an action after the end of an episode": action[~acted].any(),
            "an episode longer than its task's horizon": (length > horizon).any(),
            "an episode that ends otherwise than it says": not np.array_equal(
                tables["episode/terminated"], action[last - 1, 4] == actions.TERMINATE
            ),
            f"{changed.sum()} frames whose verdicts are others than today's detectors give": changed.any(),
        }
        return [text for text, wrong in found.items() if wrong]
