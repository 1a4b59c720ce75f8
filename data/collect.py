"""Collection: worker processes fill shards with episodes, resumable to exactly the asked number.

Every episode's randomness comes from (seed, source, task, number) alone and a reset leaves nothing of the episode
before, so the bytes of a shard depend neither on the number of workers nor on the machine's part in it, and one that
was interrupted is simply made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib
import json
import os
import subprocess
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data import codec
from data.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from data.progress import Progress
from data.shards import DatasetError, Episode, Row, read_json, read_shard, unpack_verdicts, write_shard, write_whole
from sim.looks import SPLITS
from sim.options import choose, option
from sim.parallel import BACKENDS, run_jobs
from sim.policies import COLLECTORS, Policy
from sim.scenes import FACTORS, read_factors
from sim.tasks import TASK_NAMES, TASKS, check_tasks
from sim.views import RENDERERS, check_size, frame_size

CONFIG = "collect.json"
FREE_TO_CHANGE = ("out", "episodes", "workers", "backend", "renderer")  # when a dataset is continued
TRAINED = "checkpoint"
POLICIES = (*COLLECTORS, TRAINED)
TRAINED_POLICY = "eval.policy:exploring"  # by name: evaluation is above data, and a scripted policy needs no torch
MANIFEST_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Source:
    """Episodes of these tasks by one policy. `noise` of a checkpoint: the probability of a random action."""

    tasks: tuple[str, ...]
    policy: str
    noise: float
    checkpoint: str
    episodes: int  # in all; the tasks take turns

    def __post_init__(self) -> None:
        check_tasks(self.tasks)
        choose("policy", self.policy, POLICIES)
        if not self.noise >= 0 or (self.policy == TRAINED and self.noise > 1):
            raise ValueError(f"noise is 0 or more, and at most 1 for a checkpoint, got {self.noise}")
        if self.episodes < 1:
            raise ValueError(f"episodes is at least 1, got {self.episodes}")
        if (self.policy == TRAINED) != bool(self.checkpoint):
            raise ValueError(
                f"policy {TRAINED} and a checkpoint go together, got {self.policy} and {self.checkpoint!r}"
            )

    def episodes_of(self, position: int) -> int:
        """How many of its episodes are of the task at this position."""
        return self.episodes // len(self.tasks) + (position < self.episodes % len(self.tasks))


OF_A_SOURCE = tuple(Source.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """What to collect. `size` is the network's crop in px; frames are stored a little larger (sim/views.py)."""

    out: str = field(metadata={"help": "folder of the dataset"})
    episodes: int = option(2000, "in all; the tasks take turns")
    size: int = option(472, "what the network will see, px")
    workers: int = option(len(os.sched_getaffinity(0)), "processes")
    tasks: tuple[str, ...] = option(TASK_NAMES, "tasks to collect")
    policy: str = option("crude", f"of {', '.join(POLICIES)}")
    noise: float = option(
        1.0, "of the policy; scripted: each episode below it; checkpoint: of a random action, epsilon"
    )
    checkpoint: str = option("", "of a trained policy")
    mix: str = option("", "TOML file of [[source]] tables: tasks, policy, noise, checkpoint, episodes (of each task)")
    until: float = option(0.0, "end a task when its last --window episodes succeed at this rate; 0: never")
    window: int = option(100, "episodes that --until looks at")
    seed: int = option(0, "of everything")
    renderer: str = option("auto", f"of {', '.join(RENDERERS)}")
    randomise: str = option("all", f"all, none, or some of {', '.join(FACTORS)}")
    split: str = option("train", f"of {', '.join(SPLITS)}: looks and sizes that never occur in the other")
    codec: str = option("jpeg", f"of {', '.join(codec.CODECS)}: zstd loses nothing and takes three times the space")
    quality: int = option(95, "of JPEG frames, 1 to 100")
    episodes_per_shard: int = option(20, "episodes in one file")
    backend: str = option("local", f"of {', '.join(BACKENDS)}: processes here, or on the Ray cluster of RAY_ADDRESS")

    def __post_init__(self) -> None:
        check_size(self.size)
        choose("renderer", self.renderer, RENDERERS)
        choose("split", self.split, SPLITS)
        choose("codec", self.codec, codec.CODECS)
        choose("backend", self.backend, BACKENDS)
        read_factors(self.randomise)
        if self.seed < 0:
            raise ValueError(f"seed is 0 or more, got {self.seed}")
        for name in ("workers", "episodes_per_shard", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, got {getattr(self, name)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is 1 to 100, got {self.quality}")
        if not 0 <= self.until <= 1:
            raise ValueError(f"until is a rate between 0 and 1, got {self.until}")
        said = [name for name in OF_A_SOURCE if getattr(self, name) != self.__dataclass_fields__[name].default]
        if self.mix and said:
            raise ValueError(f"the mix says {', '.join(said)} for each source: leave --{said[0]} out")
        _ = self.sources  # its own checks

    @functools.cached_property
    def sources(self) -> tuple[Source, ...]:
        """The mix, or the one source that the options describe."""
        if not self.mix:
            return (Source(**{name: getattr(self, name) for name in OF_A_SOURCE}),)
        try:
            tables = tomllib.loads(Path(self.mix).read_text())["source"]
            return tuple(_read_source(table) for table in tables)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.mix}: {error}") from error


def _read_source(table: dict[str, Any]) -> Source:
    values = {"tasks": TASK_NAMES, "policy": "crude", "noise": 1.0, "checkpoint": "", **table}
    for name in values:
        choose("entry of a source", name, OF_A_SOURCE)
    tasks = tuple(values["tasks"])
    return Source(**{**values, "tasks": tasks, "episodes": values["episodes"] * len(tasks)})


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Episodes `first` to `last` (not included) of one task of one source."""

    source: int
    task: str
    number: int
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.source}-{self.number:05d}.h5"

    @property
    def lane(self) -> tuple[int, str]:
        return self.source, self.task


def plan(config: CollectConfig) -> list[ShardJob]:
    """All shards, in an order in which the tasks of all sources advance together."""
    size, jobs = config.episodes_per_shard, []
    for index, source in enumerate(config.sources):
        for position, task in enumerate(source.tasks):
            total = source.episodes_of(position)
            for first in range(0, total, size):
                job = ShardJob(
                    source=index, task=task, number=first // size, first=first, last=min(first + size, total)
                )
                jobs.append(((first + 0.5) / total, job))
    return [job for _, job in sorted(jobs, key=lambda pair: pair[0])]


def collect(config: CollectConfig) -> Manifest:
    """Collect until the dataset holds exactly what was asked for; returns the manifest."""
    folder = Path(config.out)
    with _claim(folder, config) as (config, about):
        jobs = plan(config)
        rows = _finished(folder, jobs)
        short = sorted({job.task for job in jobs} ^ {task for source in config.sources for task in source.tasks})
        progress = Progress(jobs)
        if short:
            progress.say(f"too few episodes for every task: none of {', '.join(short)}")
        for job in jobs:
            if job.name in rows:
                progress.count(job, rows[job.name])
        try:
            _fill(folder, config, about, jobs, rows, progress)
        except KeyboardInterrupt:
            progress.say(
                f"stopped: {folder} keeps its {len(rows)} finished shards; the same command goes on from there"
            )
            raise SystemExit(130) from None
        finally:
            progress.close()
            manifest = _list(folder, config, jobs, rows)
        listed = {row["name"] for row in manifest["shards"]}
        for job in jobs:
            if job.name not in listed:  # beyond the end of a task that ended early
                (folder / job.name).unlink(missing_ok=True)
    return manifest


@contextlib.contextmanager
def _claim(folder: Path, config: CollectConfig) -> Iterator[tuple[CollectConfig, dict[str, Any]]]:
    """Hold the folder for this collection alone, refuse one that holds something else -> the options that bind it."""
    path = folder / CONFIG
    wanted = json.loads(json.dumps(asdict(config)))
    wanted["sources"] = [_fingerprint(source) for source in config.sources]
    started = path.is_file()
    if not started and folder.exists() and any(not entry.name.endswith(".tmp") for entry in folder.iterdir()):
        raise DatasetError(f"{folder}: not empty and not a Switchyard dataset (it has no {CONFIG})")
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatasetError(f"{folder}: another collection is at work in this folder") from None
        found = read_json(path) if started else {}
        if any(folder.glob("*.h5")):  # options without an episode bind nobody
            config = replace(config, renderer=_check_same(folder, config, wanted, found))
        else:
            from sim.camera import resolve_renderer

            config = replace(config, renderer=resolve_renderer(config.renderer))
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        about = {**wanted, "renderer": config.renderer}
        write_whole(path, json.dumps({k: v for k, v in about.items() if k != "out"}, indent=1).encode())
        yield config, about
    finally:
        os.close(lock)


def _fingerprint(source: Source) -> dict[str, Any]:
    """A source as plain values, its checkpoint by content: a file of that name may change while a dataset grows."""
    known = json.loads(json.dumps(asdict(source)))
    if source.checkpoint:
        try:
            known["checkpoint_sha256"] = hashlib.sha256(Path(source.checkpoint).read_bytes()).hexdigest()
        except OSError as error:
            raise DatasetError(f"{source.checkpoint}: no such checkpoint") from error
    return known


def _check_same(folder: Path, config: CollectConfig, wanted: dict[str, Any], found: dict[str, Any]) -> str:
    """The renderer of a dataset that was begun; refuses one that was begun with other options."""
    if config.renderer not in ("auto", found.get("renderer")):
        raise DatasetError(f"{folder}: rendered by {found.get('renderer')}, asked for {config.renderer}")

    def binding(about: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in about.items() if key not in (*FREE_TO_CHANGE, "mix")}
        sources = about.get("sources", ())
        return {**kept, "sources": [{k: v for k, v in source.items() if k != "episodes"} for source in sources]}

    old, new = binding(found), binding(wanted)
    differs = [key for key in new if new[key] != old.get(key)]
    if differs:
        plain = [key for key in differs if key != "sources"] or differs
        pairs = ", ".join(f"{key} {old.get(key)!r} (now {new[key]!r})" for key in plain)
        raise DatasetError(f"{folder}: already holds a dataset collected with other options: {pairs}")
    held, asked = (sum(source["episodes"] for source in about["sources"]) for about in (found, wanted))
    if asked < held:
        raise DatasetError(f"{folder}: was asked for {held} episodes, now for {asked}")
    return found["renderer"]


def _finished(folder: Path, jobs: list[ShardJob]) -> dict[str, Row]:
    """Rows of the shards that are there: those that the manifest lists as it tells, others from a read of the whole."""
    listed: dict[str, Row] = {}
    if (folder / MANIFEST).is_file():
        with contextlib.suppress(DatasetError):  # a damaged manifest is remade from its shards
            listed = {row["name"]: row for row in read_manifest(folder)["shards"]}
    rows = {}
    for job in jobs:
        path = folder / job.name
        if path.is_file():
            row = listed.get(job.name)
            if row is None or row["bytes"] != path.stat().st_size:
                row = read_shard(path)[0]
            if len(row["task"]) == job.last - job.first:
                rows[job.name] = row
    return rows


def _fill(
    folder: Path,
    config: CollectConfig,
    about: dict[str, Any],
    jobs: list[ShardJob],
    rows: dict[str, Row],
    progress: Progress,
) -> None:
    """Make the shards that are missing; lanes that have reached `config.until` need no more."""
    ended = _lengths(config, jobs, rows)
    todo = [job for job in jobs if job.name not in rows and job.number < ended[job.lane]]
    if not todo:
        progress.say(f"{folder}: all {sum(len(row['task']) for row in rows.values())} episodes are there")
        return
    attributes: dict[str, Any] = {
        "commit": commit(),
        **{key: str(about[key]) for key in ("randomise", "split", "codec")},
    }
    attributes |= {"renderer": config.renderer, "seed": config.seed, "size": config.size, "quality": config.quality}
    written = time.monotonic()
    worker = (folder.resolve(), config, attributes, about["sources"])
    with contextlib.closing(run_jobs(Collector, worker, todo, config.workers, config.backend)) as results:
        for job, row, seconds in results:
            rows[job.name] = row
            progress.count(job, row, seconds)
            if time.monotonic() - written > MANIFEST_EVERY_S:
                _list(folder, config, jobs, rows)
                written = time.monotonic()
            if config.until:
                ended = _lengths(config, jobs, rows)
                if all(other.name in rows or other.number >= ended[other.lane] for other in todo):
                    return


def _lengths(config: CollectConfig, jobs: list[ShardJob], rows: dict[str, Row]) -> dict[tuple[int, str], int]:
    """After how many shards each lane ends: decided by its first shards without a gap, whoever was fastest."""
    lanes: dict[tuple[int, str], list[ShardJob]] = defaultdict(list)
    for job in jobs:
        lanes[job.lane].append(job)
    ended = {}
    for lane, members in lanes.items():
        won: list[bool] = []
        ended[lane] = len(members)
        for job in sorted(members, key=lambda job: job.number) if config.until else ():
            if job.name not in rows:
                break
            won += _success(rows[job.name], job.task).tolist()
            if len(won) >= config.window and np.mean(won[-config.window :]) >= config.until:
                ended[lane] = job.number + 1
                break
    return ended


def _success(row: Row, task: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return unpack_verdicts(np.array(row["success"], np.int64))[:, TASKS[task].index]


def _list(folder: Path, config: CollectConfig, jobs: list[ShardJob], rows: dict[str, Row]) -> Manifest:
    """Write the manifest of the shards that are there, in the order of the plan."""
    ended = _lengths(config, jobs, rows)
    kept = [rows[job.name] for job in jobs if job.name in rows and job.number < ended[job.lane]]
    about = {"size": config.size, "frame_size": frame_size(config.size), "renderer": config.renderer}
    about |= {"split": config.split, "randomise": list(read_factors(config.randomise))}
    return write_manifest(folder, about, kept)


def commit() -> str:
    """The commit of this checkout, with `+` where files differ from it; `unknown` outside a checkout."""
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(("git", *arguments), cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class Collector:
    """What a worker holds: one world, and the trained policies that it loaded. Called with a job, it makes a shard."""

    def __init__(
        self, folder: Path, config: CollectConfig, attributes: dict[str, Any], sources: list[dict[str, Any]]
    ) -> None:
        from sim.env import PickPlaceEnv

        self._folder, self._config, self._attributes, self._sources = folder, config, attributes, sources
        self._env = PickPlaceEnv(
            image_size=frame_size(config.size), renderer=config.renderer, randomise=config.randomise, split=config.split
        )
        self._trained: dict[str, Callable[[float], Policy]] = {}

    def __call__(self, job: ShardJob) -> tuple[ShardJob, Row, float]:
        begin = time.perf_counter()
        episodes = [self.episode(job, number) for number in range(job.first, job.last)]
        about = self._sources[job.source]
        own = {key: about[key] for key in ("policy", "noise", "checkpoint")}
        own |= {"source": job.source, "checkpoint_sha256": about.get("checkpoint_sha256", "")}
        row = write_shard(self._folder / job.name, episodes, {**self._attributes, **own})
        return job, row, time.perf_counter() - begin

    def episode(self, job: ShardJob, number: int) -> Episode:
        from sim.env import as_action, as_batch

        env, task, source = self._env, TASKS[job.task], self._config.sources[job.source]
        rng = np.random.default_rng([self._config.seed, job.source, task.index, number])
        policy, noise = self._policy(source, rng)
        observation, info = env.reset(seed=int(rng.integers(2**31)), options={"task": task.name})
        frames, states, outcomes, taken = [], [], [], []
        terminated = truncated = False
        while True:
            frames.append(codec.encode(observation["image"], self._config.codec, self._config.quality))
            states.append(info["state"])
            outcomes.append(info["verdicts"])
            if terminated or truncated:
                break
            action = policy.act(as_batch(observation, info), np.array([task.index]), rng)[0]
            taken.append(action)
            observation, _, terminated, truncated, info = env.step(as_action(action))
        return Episode(
            task_index=task.index,
            number=number,
            terminated=terminated,
            noise=noise,
            action=np.stack(taken),
            state=np.stack(states),
            verdict=np.stack(outcomes),
            frames=tuple(frames),
        )

    def _policy(self, source: Source, rng: np.random.Generator) -> tuple[Policy, float]:
        if source.policy != TRAINED:
            kind = COLLECTORS[source.policy]
            noise = source.noise * (1 - kind.noise_spread * (1 - rng.random()))
            return kind(noise), noise
        if source.checkpoint not in self._trained:
            module, name = TRAINED_POLICY.split(":")
            self._trained[source.checkpoint] = getattr(importlib.import_module(module), name)(
                source.checkpoint, frame_size(self._config.size), self._config.renderer
            )
        return self._trained[source.checkpoint](source.noise), source.noise
