"""Export to other formats: LeRobot (codebase v3.0, images in parquet) and Minari (0.5, HDF5).

JPEG frames are copied as stored, lossless ones become PNG. LeRobot's rows are steps, so the last frame of an episode,
which has no action, is left out; Minari's observations include it.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data import codec
from data.manifest import atomic_folder
from data.replay import Replay
from data.shards import Frame
from sim.actions import COMMANDS, MAX_TRANSLATION_M, MAX_YAW_RAD
from sim.state import STATE_SIZE, SceneState
from sim.tasks import TASK_NAMES

ACTIONS_PER_S = 6  # nominal: the world moves 40 to 64 physics steps of 1/240 s an action
FILE_BYTES = 100_000_000
FILES_IN_CHUNK = 1000
Export = Callable[[Replay, Path], None]


def atomic(write: Export) -> Export:
    """Decorate an exporter to write its folder atomically."""

    @functools.wraps(write)
    def export(replay: Replay, out: Path) -> None:
        with atomic_folder(out) as making:
            write(replay, making)

    return export


@atomic
def to_lerobot(replay: Replay, out: Path) -> None:
    """Write the LeRobot layout, read by `LeRobotDataset("switchyard/pick-place", root=out)`."""
    try:
        import pandas as pd
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError("LeRobot's layout is parquet: pip install -e '.[export]'") from None
    side = replay.frame_size
    features = {
        "observation.image": _feature("image", (side, side, 3), ["height", "width", "channel"]),
        "observation.state": _feature("float32", (2,), ["gripper_closed", "gripper_height"]),
        "observation.environment_state": _feature("float32", (STATE_SIZE,)),
        "action": _feature("float32", (5,), ["x", "y", "z", "yaw", "command"]),
        "next.reward": _feature("float32", (1,)),
        "next.done": _feature("bool", (1,)),
        "next.success": _feature("bool", (1,)),
        "timestamp": _feature("float32", (1,)),
        **{key: _feature("int64", (1,)) for key in ("frame_index", "episode_index", "index", "task_index")},
    }
    episodes: list[dict[str, Any]] = []
    rows: dict[str, list[Any]] = {}
    stats = _Stats()
    size = file = index = 0

    def path_of(folder: str, number: int) -> Path:
        path = out / folder / f"chunk-{number // FILES_IN_CHUNK:03d}" / f"file-{number % FILES_IN_CHUNK:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def column(dtype: str, shape: list[int], names: list[str] | None) -> pa.DataType:
        if dtype == "image":
            return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        kind = pa.from_numpy_dtype(dtype)
        return kind if shape == [1] else pa.list_(kind, shape[0])

    def flush() -> None:
        columns = {key: pa.array(values, column(**features[key])) for key, values in rows.items()}
        pq.write_table(pa.table(columns), path_of("data", file))

    for episode, frames in _episodes(replay):
        task, steps = int(replay.episode_task[episode]), len(frames) - 1
        success = bool(replay.success[episode, task])
        last = [step == steps - 1 for step in range(steps)]
        new = {
            "observation.image": [{"bytes": _file(frame), "path": None} for frame in frames[:-1]],
            "observation.state": [_gripper(frame).tolist() for frame in frames[:-1]],
            "observation.environment_state": [frame.state.tolist() for frame in frames[:-1]],
            "action": [frame.action.tolist() for frame in frames[:-1]],
            "next.reward": [float(success and end) for end in last],
            "next.done": last,
            "next.success": [success and end for end in last],
            "timestamp": [step / ACTIONS_PER_S for step in range(steps)],
            "frame_index": list(range(steps)),
            "episode_index": [episode] * steps,
            "index": list(range(index, index + steps)),
            "task_index": [task] * steps,
        }
        stats.add(new, replay.images([replay.frames_of(episode)[0]]))
        for key, values in new.items():
            rows.setdefault(key, []).extend(values)
        location = {"data/chunk_index": file // FILES_IN_CHUNK, "data/file_index": file % FILES_IN_CHUNK}
        metadata = {"episode_index": episode, "tasks": [TASK_NAMES[task]], "length": steps}
        bounds = {"dataset_from_index": index, "dataset_to_index": index + steps}
        episodes.append(
            {**metadata, **location, **bounds, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        )
        index += steps
        size += sum(len(frame.image) for frame in frames)
        if size > FILE_BYTES:
            flush()
            rows, size, file = {}, 0, file + 1
    if rows:
        flush()
    pq.write_table(pa.Table.from_pylist(episodes), path_of("meta/episodes", 0))
    tasks = pd.DataFrame({"task_index": range(len(TASK_NAMES))}, index=list(TASK_NAMES))
    tasks.to_parquet(out / "meta" / "tasks.parquet")
    info = {
        "codebase_version": "v3.0",
        "robot_type": "panda",
        "total_episodes": replay.num_episodes,
        "total_frames": replay.num_steps,
        "total_tasks": len(TASK_NAMES),
        "chunks_size": FILES_IN_CHUNK,
        "data_files_size_in_mb": FILE_BYTES // 1_000_000,
        "video_files_size_in_mb": 200,
        "fps": ACTIONS_PER_S,
        "splits": {"train": f"0:{replay.num_episodes}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": features,
    }
    (out / "meta" / "stats.json").write_text(json.dumps(stats.finish(), indent=1), encoding="utf-8")
    (out / "meta" / "info.json").write_text(json.dumps(info, indent=1), encoding="utf-8")


@atomic
def to_minari(replay: Replay, out: Path) -> None:
    """Write Minari's layout, read by `minari.MinariDataset(out / "data")`, or by name in Minari's own folder."""
    data = out / "data"
    data.mkdir()
    with h5py.File(data / "main_data.hdf5", "w", track_order=True, locking=False) as file:
        for episode, frames in _episodes(replay):
            task = int(replay.episode_task[episode])
            steps = len(frames) - 1
            action = np.stack([frame.action for frame in frames[:-1]])
            last = np.arange(steps) == steps - 1
            terminated = bool(action[-1, 4] == COMMANDS.index("terminate"))
            gripper = np.stack([_gripper(frame) for frame in frames])
            group = file.create_group(f"episode_{episode}")
            group.attrs.update({"id": episode, "total_steps": steps, "task": TASK_NAMES[task]})
            images = group.create_dataset("observations/image", len(frames), h5py.vlen_dtype(np.uint8))
            for number, frame in enumerate(frames):
                images[number] = np.frombuffer(_file(frame), np.uint8)
            tables = {
                "observations/gripper_closed": gripper[:, :1],
                "observations/gripper_height": gripper[:, 1:],
                "actions/translation": action[:, :3],
                "actions/yaw": action[:, 3],
                "actions/command": action[:, 4].astype(np.int64),
                "rewards": (last & replay.success[episode, task]).astype(np.float32),
                "terminations": last & terminated,
                "truncations": last & (not terminated),
                "infos/state": np.stack([frame.state for frame in frames]),
                "infos/verdicts": np.stack([frame.verdict for frame in frames]),
                "infos/task_index": np.full(len(frames), task),
            }
            for key, table in tables.items():
                group.create_dataset(key, data=table)
    side, reach, turn = [replay.frame_size] * 2, MAX_TRANSLATION_M, MAX_YAW_RAD
    observation = {
        "gripper_closed": _box("float32", [1], 0.0, 1.0),
        "gripper_height": _box("float32", [1], -1.0, 2.0),
        "image": _box("uint8", [*side, 3], 0, 255),
    }
    acting = {
        "command": {"type": "Discrete", "dtype": "int64", "start": 0, "n": len(COMMANDS)},
        "translation": _box("float32", [3], -reach, reach),
        "yaw": _box("float32", [], -turn, turn),
    }
    metadata = {
        "dataset_id": "switchyard/pick-place-v0",
        "total_episodes": replay.num_episodes,
        "total_steps": replay.num_steps,
        "data_format": "hdf5",
        "jpeg_encoding": True,
        "observation_space": json.dumps({"type": "Dict", "subspaces": observation}),
        "action_space": json.dumps({"type": "Dict", "subspaces": acting}),
        "minari_version": "0.5.0",
        "description": f"ten lift and place tasks, {replay.renderer}, {', '.join(replay.randomise)} randomised",
    }
    (data / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")


EXPORTS: dict[str, Export] = {"lerobot": to_lerobot, "minari": to_minari}


def _episodes(replay: Replay) -> Iterator[tuple[int, list[Frame]]]:
    for episode in range(replay.num_episodes):
        yield episode, replay.read(replay.frames_of(episode))


def _file(frame: Frame) -> bytes:
    """The image of a frame as a JPEG or PNG file."""
    if codec.is_jpeg(frame.image):
        return frame.image
    out = io.BytesIO()
    Image.fromarray(codec.decode(frame.image)).save(out, "png")
    return out.getvalue()


def _gripper(frame: Frame) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Gripper state [2]: closed (0 or 1), height (m)."""
    state = SceneState(frame.state)
    return np.array([state["gripper_closed"], state["gripper_position"][2]], np.float32)


def _feature(kind: str, shape: tuple[int, ...], names: list[str] | None = None) -> dict[str, Any]:
    return {"dtype": kind, "shape": list(shape), "names": names}


def _box(kind: str, shape: list[int], low: float, high: float) -> dict[str, Any]:
    bounds = {name: np.full(shape, value, kind).tolist() for name, value in (("low", low), ("high", high))}
    return {"type": "Box", "dtype": kind, "shape": shape, **bounds}


class _Stats:
    """Running min, max, mean and std of each column; for images per channel in [0, 1], over first frames only."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, Any]] = {}

    def add(self, rows: dict[str, list[Any]], first: NDArray[np.uint8]) -> None:
        for key, values in rows.items():
            is_image = key == "observation.image"
            table = first.reshape(-1, 3) / 255 if is_image else np.array(values, np.float64).reshape(len(values), -1)
            new = {"min": table.min(0), "max": table.max(0), "sum": table.sum(0), "squares": (table**2).sum(0)}
            new |= {"rows": len(table), "count": 1 if is_image else len(table)}
            old = self._sums.get(key, new)
            joined = (
                {name: old[name] + new[name] for name in ("sum", "squares", "rows", "count")} if old is not new else new
            )
            low, high = np.minimum(old["min"], new["min"]), np.maximum(old["max"], new["max"])
            self._sums[key] = {**joined, "min": low, "max": high}

    def finish(self) -> dict[str, dict[str, list[Any]]]:
        out = {}
        for key, sums in self._sums.items():
            mean = sums["sum"] / sums["rows"]
            std = np.sqrt(np.maximum(sums["squares"] / sums["rows"] - mean**2, 0))
            shape = (3, 1, 1) if key == "observation.image" else (-1,)
            found = {"min": sums["min"], "max": sums["max"], "mean": mean, "std": std}
            out[key] = {name: value.reshape(shape).tolist() for name, value in found.items()}
            out[key]["count"] = [sums["count"]]
        return out
