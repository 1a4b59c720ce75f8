"""Collection: worker processes fill shards with scripted episodes, resumable to exactly the asked number.

Every episode's randomness comes from (seed, episode number) alone and a reset leaves nothing of the episode before, so
they do not depend on the number of workers, and a shard that was interrupted is simply made again.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import queue
import signal
import threading
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data import jpeg
from data.shards import (
    CONFIG,
    MANIFEST,
    SCHEMA_VERSION,
    DatasetError,
    Episode,
    describe,
    read_json,
    read_manifest,
    write_atomic,
    write_shard,
)
from sim.looks import SPLITS
from sim.options import choose, option
from sim.policies import COLLECTORS
from sim.scenes import FACTORS, read_factors
from sim.tasks import TASK_NAMES, TASKS, check_tasks
from sim.views import RENDERERS, check_size, frame_size

FREE_TO_CHANGE = ("episodes", "workers")  # options that may differ when a dataset is continued


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """What to collect. `size` is the network's crop in px; frames are stored a little larger (sim/views.py)."""

    out: str = field(metadata={"help": "folder of the dataset"})
    episodes: int = option(2000, "in all; the tasks take turns")
    size: int = option(472, "what the network will see, px")
    workers: int = option(len(os.sched_getaffinity(0)), "processes")
    tasks: tuple[str, ...] = option(TASK_NAMES, "tasks to collect")
    policy: str = option("crude", f"of {', '.join(COLLECTORS)}")
    noise: float = option(1.0, "of the policy; scripted: each episode draws its own between 0 and this")
    seed: int = option(0, "of everything; episode n depends on (seed, n) alone")
    renderer: str = option("auto", f"of {', '.join(RENDERERS)}")
    randomise: str = option("all", f"all, none, or some of {', '.join(FACTORS)}")
    split: str = option("train", f"of {', '.join(SPLITS)}: looks and sizes that never occur in the other")
    quality: int = option(95, "of the JPEG frames, 1 to 100")
    episodes_per_shard: int = option(20, "episodes in one file")

    def __post_init__(self) -> None:
        check_tasks(self.tasks)
        check_size(self.size)
        choose("renderer", self.renderer, RENDERERS)
        choose("policy", self.policy, tuple(COLLECTORS))
        choose("split", self.split, SPLITS)
        read_factors(self.randomise)
        for name in ("noise", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is 0 or more, got {getattr(self, name)}")
        for name in ("episodes", "workers", "episodes_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, got {getattr(self, name)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is 1 to 100, got {self.quality}")


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.h5"


def collect(config: CollectConfig) -> dict[str, Any]:
    """Collect until the dataset holds exactly `config.episodes`; returns the manifest."""
    folder = Path(config.out)
    config = _claim(folder, config)
    size = config.episodes_per_shard
    num_shards = -(-config.episodes // size)
    rows: dict[int, dict[str, Any]] = {}
    for number in range(num_shards):
        path = folder / shard_name(number)
        wanted = min(size, config.episodes - number * size)
        if path.is_file() and (row := describe(path))["episodes"] == wanted:
            rows[number] = row
    todo = [number for number in range(num_shards) if number not in rows]
    done = sum(row["episodes"] for row in rows.values())
    if not todo:
        tqdm.write(f"{folder}: all {config.episodes} episodes are there")
    else:
        if config.episodes < len(config.tasks):
            tqdm.write(f"{config.episodes} episodes reach the first {config.episodes} of {len(config.tasks)} tasks")
        _run_workers(config, todo, rows, done)
    return _write_manifest(folder, config, rows)


def _claim(folder: Path, config: CollectConfig) -> CollectConfig:
    """Start or continue a dataset in this folder; refuse one that was collected otherwise."""
    path = folder / CONFIG
    wanted = {key: value for key, value in json.loads(json.dumps(asdict(config))).items() if key != "out"}
    if path.is_file() and any(folder.glob("shard-*.h5")):  # options without an episode bind nobody
        found = read_json(path)
        if config.renderer not in ("auto", found.get("renderer")):
            raise DatasetError(f"{folder}: rendered by {found.get('renderer')}, asked for {config.renderer}")
        free = {*FREE_TO_CHANGE, "renderer"}
        differs = [key for key in wanted if key not in free and wanted[key] != found.get(key)]
        if differs:
            pairs = ", ".join(f"{key} {found.get(key)!r} (now {wanted[key]!r})" for key in differs)
            raise DatasetError(f"{folder}: already holds a dataset collected with other options: {pairs}")
        held = read_manifest(folder)["episodes"] if (folder / MANIFEST).is_file() else 0
        if config.episodes < held:
            raise DatasetError(f"{folder}: already holds {held} episodes, asked for {config.episodes}")
        config = replace(config, renderer=found["renderer"])
    elif not path.is_file() and folder.exists() and any(not entry.name.endswith(".tmp") for entry in folder.iterdir()):
        raise DatasetError(f"{folder}: not empty and not a Switchyard dataset (it has no {CONFIG})")
    else:
        from sim.camera import resolve_renderer

        config = replace(config, renderer=resolve_renderer(config.renderer))
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()
    write_atomic(path, json.dumps({k: v for k, v in asdict(config).items() if k != "out"}, indent=1))
    return config


def _run_workers(config: CollectConfig, todo: list[int], rows: dict[int, dict[str, Any]], done: int) -> None:
    context = mp.get_context("spawn")
    jobs: mp.Queue[int] = context.Queue()
    news: mp.Queue[tuple[str, Any]] = context.Queue()
    for number in todo:
        jobs.put(number)
    workers = [
        context.Process(target=_worker, args=(config, jobs, news), daemon=True)
        for _ in range(min(config.workers, len(todo)))
    ]
    for worker in workers:
        worker.start()
    folder = Path(config.out)
    successes = collected = 0
    bar = tqdm(total=config.episodes, initial=done, unit="episode", desc="collect", smoothing=0.1)
    try:
        while len(rows) < -(-config.episodes // config.episodes_per_shard):
            try:
                kind, value = news.get(timeout=1.0)
            except queue.Empty:
                if not any(worker.is_alive() for worker in workers):
                    raise DatasetError("every collecting worker has died; its error is printed above") from None
                continue
            if kind == "error":
                raise DatasetError(value)
            if kind == "episode":
                collected += 1
                successes += value
                bar.update()
                bar.set_postfix_str(f"success {successes / collected:.0%}", refresh=False)
            else:
                number, row = value
                rows[number] = row
                _write_manifest(folder, config, rows)
    except KeyboardInterrupt:
        tqdm.write(f"\nstopped: {folder} keeps its {len(rows)} finished shards; the same command goes on from there")
        raise SystemExit(130) from None
    finally:
        bar.close()
        for worker in workers:
            worker.terminate()
            worker.join()


def _write_manifest(folder: Path, config: CollectConfig, rows: dict[int, dict[str, Any]]) -> dict[str, Any]:
    manifest = {
        "schema": SCHEMA_VERSION,
        "size": config.size,
        "renderer": config.renderer,
        "randomise": list(read_factors(config.randomise)),
        "split": config.split,
        "tasks": list(TASK_NAMES),
        "episodes": sum(row["episodes"] for row in rows.values()),
        "shards": [rows[number] for number in sorted(rows)],
    }
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1))
    return manifest


def _worker(config: CollectConfig, jobs: mp.Queue[int], news: mp.Queue[tuple[str, Any]]) -> None:
    """Make shards until there is no job left. Ctrl-C is the parent's to handle."""
    from sim.env import PickPlaceEnv

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    env = PickPlaceEnv(
        image_size=frame_size(config.size), renderer=config.renderer, randomise=config.randomise, split=config.split
    )
    while True:
        try:
            number = jobs.get(timeout=0.5)
        except queue.Empty:
            return
        try:
            news.put(("shard", (number, _make_shard(env, config, number, news))))
        except (OSError, ValueError) as error:  # a full disk, say
            news.put(("error", f"{shard_name(number)}: {error}"))
            return


def _make_shard(env: Any, config: CollectConfig, number: int, news: mp.Queue[tuple[str, Any]]) -> dict[str, Any]:
    first = number * config.episodes_per_shard
    last = min(first + config.episodes_per_shard, config.episodes)
    episodes = []
    for index in range(first, last):
        episodes.append(collect_episode(env, config, index))
        news.put(("episode", bool(episodes[-1].verdict[-1, episodes[-1].task_index])))
    attributes = {"renderer": config.renderer, "seed": config.seed, "size": config.size}
    attributes |= {"first_episode": first, "config": json.dumps(asdict(config))}
    return write_shard(Path(config.out) / shard_name(number), episodes, attributes)


def _end_with_parent() -> None:
    """A parent that is killed tells nobody: its workers wait for its end, and end too."""
    parent = mp.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def collect_episode(env: Any, config: CollectConfig, index: int) -> Episode:
    """Episode number `index` of the dataset: its task goes round, its randomness is (seed, index)."""
    from sim.env import as_action, as_batch

    rng = np.random.default_rng([config.seed, index])
    task = TASKS[config.tasks[index % len(config.tasks)]]
    kind = COLLECTORS[config.policy]
    noise = config.noise * (1 - kind.noise_spread * (1 - rng.random()))
    policy = kind(noise)
    observation, info = env.reset(seed=int(rng.integers(2**31)), options={"task": task.name})
    frames, states, outcomes, taken = [], [], [], []
    terminated = truncated = False
    while True:
        frames.append(jpeg.encode(observation["image"], config.quality))
        states.append(info["state"])
        outcomes.append(info["verdicts"])
        if terminated or truncated:
            break
        action = policy.act(as_batch(observation, info), np.array([task.index]), rng)[0]
        taken.append(action)
        observation, _, terminated, truncated, info = env.step(as_action(action))
    return Episode(
        task_index=task.index,
        terminated=terminated,
        noise=noise,
        action=np.stack(taken),
        state=np.stack(states),
        verdict=np.stack(outcomes),
        frames=tuple(frames),
    )
