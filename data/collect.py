"""Collection: worker processes fill shards with episodes, resumable to exactly the asked number.

Every episode's randomness comes from (seed, source, task, number) alone and a reset leaves nothing of the episode
before, so the bytes of a shard depend neither on the number of workers nor on the machine's part in it, and one that
was interrupted is simply made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import json
import subprocess
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data import codec
from data.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from data.plan import CONFIG, TRAINED, CollectConfig, ShardJob, Source, plan
from data.progress import Progress
from data.shards import DatasetError, Episode, Row, read_json, read_shard, successes, write_shard, write_whole
from sim.parallel import run_jobs
from sim.policies import COLLECTORS, Policy
from sim.scenes import read_factors
from sim.tasks import TASKS
from sim.views import frame_size

LOCK = "collect.lock"
BINDING = ("size", "seed", "randomise", "split", "codec", "quality", "episodes_per_shard", "until", "window")
# By name: evaluation is above data, and who collects with a scripted policy needs neither it nor torch.
TRAINED_POLICY = "eval.policy:exploring"
MANIFEST_EVERY_S = 5.0


def collect(config: CollectConfig) -> Manifest:
    """Collect until the dataset holds exactly what was asked for; returns the manifest."""
    folder = Path(config.out)
    with _claim(folder, config) as (config, about):
        jobs = plan(config, about["asked"])
        lanes = Lanes(jobs, config)
        progress = Progress(jobs)
        missing = {task for source in config.sources for task in source.tasks} - {job.task for job in jobs}
        if missing:
            progress.say(f"too few episodes for every task: none of {', '.join(sorted(missing))}")
        for job, row in _finished(folder, jobs, about):
            lanes.add(job, row)
            progress.count(job, row)
        try:
            _fill(folder, config, about, lanes, progress)
        except KeyboardInterrupt:
            kept = len(lanes.rows)
            progress.say(f"stopped: {folder} keeps its {kept} finished shards; the same command goes on from there")
            raise SystemExit(130) from None
        finally:
            progress.close()
            manifest = _write_manifest(folder, config, lanes)
        for job in jobs:
            if not lanes.wants(job):  # beyond the end of a task that ended early
                (folder / job.name).unlink(missing_ok=True)
    return manifest


class Lanes:
    """What is finished. A lane, the shards of one task of one source, ends where its last `window` episodes succeed at
    the rate `until`: that is decided by its first shards without a gap, whoever was fastest."""

    def __init__(self, jobs: list[ShardJob], config: CollectConfig) -> None:
        self.jobs, self.rows = jobs, dict[str, Row]()
        self._config = config
        self._waiting: dict[tuple[int, str], deque[ShardJob]] = defaultdict(deque)  # first shards not yet counted
        for job in sorted(jobs, key=lambda job: job.first):
            self._waiting[job.lane].append(job)
        self._recent: dict[tuple[int, str], deque[bool]] = defaultdict(lambda: deque(maxlen=config.window))
        self._end: dict[tuple[int, str], int] = {}  # of lanes that ended early: episodes

    def add(self, job: ShardJob, row: Row) -> None:
        self.rows[job.name] = row
        waiting, recent = self._waiting[job.lane], self._recent[job.lane]
        while self._config.until and job.lane not in self._end and waiting and waiting[0].name in self.rows:
            counted = waiting.popleft()
            recent.extend(successes(self.rows[counted.name], TASKS[job.task].index))
            if len(recent) == self._config.window and np.mean(recent) >= self._config.until:
                self._end[job.lane] = counted.last

    def wants(self, job: ShardJob) -> bool:
        return job.first < self._end.get(job.lane, job.last)

    def missing(self) -> Iterator[ShardJob]:
        """Shards to make, each when a worker is free for it: its lane may have ended since."""
        for job in self.jobs:
            if job.name not in self.rows and self.wants(job):
                yield job

    def listed(self) -> list[Row]:
        return [self.rows[job.name] for job in self.jobs if job.name in self.rows and self.wants(job)]


@contextlib.contextmanager
def _claim(folder: Path, config: CollectConfig) -> Iterator[tuple[CollectConfig, dict[str, Any]]]:
    """Hold the folder for this collection alone, refuse one that holds something else -> what binds the dataset."""
    path = folder / CONFIG
    if not path.is_file() and folder.exists() and any(not _is_ours(entry) for entry in folder.iterdir()):
        raise DatasetError(f"{folder}: not empty and not a Switchyard dataset (it has no {CONFIG})")
    wanted: dict[str, Any] = {key: getattr(config, key) for key in BINDING}
    wanted["sources"] = [_fingerprint(source) for source in config.sources]
    with hold(folder / LOCK, f"{folder}: another collection is at work in this folder"):
        counts = [source.episodes for source in config.sources]
        if path.is_file() and any(folder.glob("*.h5")):  # options without an episode bind nobody
            found = read_json(path)
            _check_same(folder, config, wanted, found, counts)
            asked = found["asked"] if counts == found["asked"][-1] else [*found["asked"], counts]
            about = {**wanted, "renderer": found["renderer"], "asked": asked}
        else:
            from sim.camera import resolve_renderer

            about = {**wanted, "renderer": resolve_renderer(config.renderer), "asked": [counts]}
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        write_whole(path, json.dumps(about, indent=1).encode())
        yield replace(config, renderer=about["renderer"]), about


@contextlib.contextmanager
def hold(lock: Path, refusal: str) -> Iterator[None]:
    """Hold this file, whose folder is made if need be; ValueError with the `refusal` where another process does."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatasetError(refusal) from None
        yield


def _is_ours(entry: Path) -> bool:
    return entry.name == LOCK or entry.name.endswith(".tmp")


def _fingerprint(source: Source) -> dict[str, Any]:
    """A source as plain values, its checkpoint by content: a file of that name may change while a dataset grows."""
    known = {"tasks": list(source.tasks), "policy": source.policy, "noise": source.noise}
    if source.checkpoint:
        if not Path(source.checkpoint).is_file():
            raise DatasetError(f"{source.checkpoint}: no such checkpoint")
        known["checkpoint_sha256"] = hashlib.sha256(Path(source.checkpoint).read_bytes()).hexdigest()
    return known


def _check_same(
    folder: Path, config: CollectConfig, wanted: dict[str, Any], found: dict[str, Any], counts: list[int]
) -> None:
    """Refuses to go on with a dataset that was begun with other options."""
    if not {*wanted, "renderer", "asked"} <= found.keys():
        raise DatasetError(f"{folder / CONFIG}: not the options of a collection that this version can go on with")
    if config.renderer not in ("auto", found["renderer"]):
        raise DatasetError(f"{folder}: rendered by {found['renderer']}, asked for {config.renderer}")
    differs = [(key, found[key], wanted[key]) for key in BINDING if wanted[key] != found[key]]
    if len(found["sources"]) != len(wanted["sources"]):
        differs.append(("sources", len(found["sources"]), len(wanted["sources"])))
    for number, (old, new) in enumerate(zip(found["sources"], wanted["sources"], strict=False)):
        place = f"source {number} " if len(found["sources"]) > 1 else ""
        differs += [(place + key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]
    if differs:
        pairs = ", ".join(f"{key} {old!r} (now {new!r})" for key, old, new in differs)
        raise DatasetError(f"{folder}: already holds a dataset collected with other options: {pairs}")
    for held, asked in zip(found["asked"][-1], counts, strict=True):
        if asked < held:
            raise DatasetError(f"{folder}: was asked for {held} episodes, now for {asked}")


def _finished(folder: Path, jobs: list[ShardJob], about: dict[str, Any]) -> Iterator[tuple[ShardJob, Row]]:
    """Shards that are there: those that the manifest lists as it tells, others from a read of the whole."""
    listed: dict[str, Row] = {}
    if (folder / MANIFEST).is_file():
        with contextlib.suppress(DatasetError):  # a damaged manifest is remade from its shards
            listed = {row.name: row for row in read_manifest(folder).shards}
    for job in jobs:
        path = folder / job.name
        if path.is_file():
            row = listed.get(job.name)
            yield job, row if row and row.bytes == path.stat().st_size else _adopt(path, job, about)


def _adopt(path: Path, job: ShardJob, about: dict[str, Any]) -> Row:
    """The row of a shard that no manifest lists, if it is the one that this job would make."""
    row, tables, attributes = read_shard(path)
    source = about["sources"][job.source]
    found = {
        "seed": int(attributes["seed"]),
        "source": int(attributes["source"]),
        "checkpoint": attributes["checkpoint_sha256"],
        "task": set(tables["episode/task"].tolist()),
        "episodes": tables["episode/number"].tolist(),
    }
    wanted = {
        "seed": about["seed"],
        "source": job.source,
        "checkpoint": source.get("checkpoint_sha256", ""),
        "task": {TASKS[job.task].index},
        "episodes": list(range(job.first, job.last)),
    }
    differs = [key for key in wanted if found[key] != wanted[key]]
    if differs:
        raise DatasetError(f"{path}: holds other episodes than it should ({', '.join(differs)} differ); delete it")
    return row


def _fill(folder: Path, config: CollectConfig, about: dict[str, Any], lanes: Lanes, progress: Progress) -> None:
    """Make the shards that are missing."""
    if next(lanes.missing(), None) is None:
        progress.say(f"{folder}: all {sum(len(row.task) for row in lanes.listed())} episodes are there")
        return
    attributes = {key: about[key] for key in ("renderer", "size", "seed", "randomise", "split", "codec", "quality")}
    written = time.monotonic()
    worker = (folder.resolve(), config, attributes | {"commit": commit()}, about["sources"], Path.cwd())
    with contextlib.closing(run_jobs(Collector, worker, lanes.missing(), config.workers, config.backend)) as results:
        for job, row, seconds in results:
            lanes.add(job, row)
            progress.count(job, row, seconds)
            if time.monotonic() - written > MANIFEST_EVERY_S:
                _write_manifest(folder, config, lanes)
                written = time.monotonic()


def _write_manifest(folder: Path, config: CollectConfig, lanes: Lanes) -> Manifest:
    manifest = Manifest(
        size=config.size,
        frame_size=frame_size(config.size),
        renderer=config.renderer,
        split=config.split,
        randomise=read_factors(config.randomise),
        shards=tuple(lanes.listed()),
    )
    write_manifest(folder, manifest)
    return manifest


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
    """What a worker holds: one world, and the trained policies that it loaded. Called with a job, it makes a shard.

    `attributes` are those of every shard, `sources` the fingerprints of the configuration's; paths of checkpoints are
    relative to `root`.
    """

    def __init__(
        self, folder: Path, config: CollectConfig, attributes: dict[str, Any], sources: list[dict[str, Any]], root: Path
    ) -> None:
        from sim.env import PickPlaceEnv

        self._folder, self._config, self._attributes, self._sources = folder, config, attributes, sources
        self._root = root
        self._env = PickPlaceEnv(
            image_size=frame_size(config.size), renderer=config.renderer, randomise=config.randomise, split=config.split
        )
        self._trained: dict[str, Callable[[float], Policy]] = {}

    def __call__(self, job: ShardJob) -> tuple[ShardJob, Row, float]:
        begin = time.perf_counter()
        episodes = [self.episode(job, number) for number in range(job.first, job.last)]
        source = self._config.sources[job.source]
        own = {"policy": source.policy, "noise": source.noise, "checkpoint": source.checkpoint, "source": job.source}
        own["checkpoint_sha256"] = self._sources[job.source].get("checkpoint_sha256", "")
        row = write_shard(self._folder / job.name, episodes, {**self._attributes, **own})
        return job, row, time.perf_counter() - begin

    def episode(self, job: ShardJob, number: int) -> Episode:
        from sim.env import as_action, as_batch

        env, task, source = self._env, TASKS[job.task], self._config.sources[job.source]
        rng = np.random.default_rng([self._config.seed, job.source, task.index, number, 1])  # unlike an evaluation's
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
            load = getattr(importlib.import_module(module), name)
            path = str(self._root / source.checkpoint)
            self._trained[source.checkpoint] = load(path, frame_size(self._config.size), self._config.renderer)
        return self._trained[source.checkpoint](source.noise), source.noise
