"""Collection: worker processes write shards of episodes; resumable and deterministic.

An episode is seeded by (seed, source, task, number) alone and a reset keeps no state of the previous episode, so the
bytes of a shard do not depend on the number of workers or on their scheduling, and an interrupted shard is simply
collected again.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data import codec
from data.collection import SHARD_OPTIONS, finished, open_collection
from data.manifest import Manifest, write_manifest
from data.plan import TRAINED, CollectConfig, ShardJob, plan
from data.progress import Progress
from data.shards import Episode, ManifestEntry, successes, write_shard
from sim.image_sizes import frame_size
from sim.options import stop_status
from sim.parallel import run_jobs
from sim.policies import COLLECTORS, Policy
from sim.scenes import read_factors
from sim.tasks import TASKS

# Loads a checkpoint: (path, sha256, frame_size, renderer) -> its policy by epsilon. Passed in by the caller, because
# data may not import eval; eval.policy.exploring is one.
LoadPolicy = Callable[[str, str, int, str], Callable[[float], Policy]]
MANIFEST_EVERY_S = 5.0


def collect(config: CollectConfig, load_policy: LoadPolicy | None = None) -> Manifest:
    """Collect or resume until the dataset holds exactly the requested episodes; returns the manifest.

    `load_policy`: a picklable function, needed if a source is a trained policy."""
    folder = Path(config.out)
    with open_collection(folder, config) as (config, metadata):
        jobs = plan(config, metadata["asked"])
        queue = TaskQueue(jobs, config)
        progress = Progress(jobs)
        missing = {task for source in config.sources for task in source.tasks} - {job.task for job in jobs}
        if missing:
            progress.say(f"too few episodes for every task: none of {', '.join(sorted(missing))}")
        try:
            for job, entry in list(finished(folder, jobs, metadata)):  # a refused shard leaves the manifest unchanged
                queue.add(job, entry)
                progress.count(job, entry)
            _fill(folder, config, metadata, queue, progress, load_policy)
        except BaseException as error:
            if queue.entries:
                with contextlib.suppress(OSError):  # the error may be that nothing can be written
                    _write_manifest(folder, config, queue)
            if not isinstance(error, KeyboardInterrupt):
                raise
            progress.say(f"stopped: {folder} keeps its finished shards; the same command goes on from there")
            raise SystemExit(stop_status(error)) from None
        finally:
            progress.close()
        for text in queue.early_stops():
            progress.say(text)
        manifest = _write_manifest(folder, config, queue)
        for job in jobs:
            if not queue.wants(job):  # beyond the early stop of its task
                (folder / job.name).unlink(missing_ok=True)
    return manifest


class TaskQueue:
    """Finished and pending shards, in a queue for each (source, task).

    With `until`, a task stops early when its last `window` episodes succeed at that rate. Only the shards before the
    first gap count, so the stop does not depend on which worker was fastest."""

    def __init__(self, jobs: list[ShardJob], config: CollectConfig) -> None:
        self.jobs, self.entries = jobs, dict[str, ManifestEntry]()
        self._config = config
        self._waiting: dict[tuple[int, str], deque[ShardJob]] = defaultdict(deque)  # not yet counted by the early stop
        for job in sorted(jobs, key=lambda job: job.first):
            self._waiting[job.key].append(job)
        self._recent: dict[tuple[int, str], deque[bool]] = defaultdict(lambda: deque(maxlen=config.window))
        self._end: dict[tuple[int, str], int] = {}  # number of episodes of tasks that stopped early

    def add(self, job: ShardJob, entry: ManifestEntry) -> None:
        self.entries[job.name] = entry
        waiting, recent = self._waiting[job.key], self._recent[job.key]
        while self._config.until and job.key not in self._end and waiting and waiting[0].name in self.entries:
            counted = waiting.popleft()
            recent.extend(successes(self.entries[counted.name], TASKS[job.task].index))
            if len(recent) == self._config.window and np.mean(recent) >= self._config.until:
                self._end[job.key] = counted.last

    def wants(self, job: ShardJob) -> bool:
        return job.first < self._end.get(job.key, job.last)

    def early_stops(self) -> Iterator[str]:
        """A message for each task that stopped early."""
        for (source, task), end in sorted(self._end.items()):
            asked = max(job.last for job in self.jobs if job.key == (source, task))
            rate, window = np.mean(self._recent[source, task]), self._config.window
            yield f"{task}: ended after {end} of {asked} episodes, {rate:.0%} of its last {window} succeed"

    def pending(self) -> Iterator[ShardJob]:
        """Shards to collect, lazily: by the time a worker is free, their task may have stopped early."""
        for job in self.jobs:
            if job.name not in self.entries and self.wants(job):
                yield job

    def listed(self) -> list[ManifestEntry]:
        """Entries that may be listed now. While a task can still stop early, shards after a gap are withheld, because
        the early stop may discard them."""
        gaps = {key: waiting[0].first for key, waiting in self._waiting.items() if waiting}
        return [
            self.entries[job.name]
            for job in self.jobs
            if job.name in self.entries
            and self.wants(job)
            and not (self._config.until and job.first >= gaps.get(job.key, job.last))
        ]


def _fill(
    folder: Path,
    config: CollectConfig,
    metadata: dict[str, Any],
    queue: TaskQueue,
    progress: Progress,
    load_policy: LoadPolicy | None,
) -> None:
    """Collect the pending shards."""
    if next(queue.pending(), None) is None:
        progress.say(f"{folder}: all {sum(len(entry.task) for entry in queue.listed())} episodes are there")
        return
    attributes = {key: metadata[key] for key in SHARD_OPTIONS}
    written = time.monotonic()
    worker = (folder.resolve(), config, attributes | {"commit": commit()}, metadata["sources"], Path.cwd(), load_policy)
    with contextlib.closing(run_jobs(Collector, worker, queue.pending(), config.workers, config.backend)) as results:
        for job, entry, seconds in results:
            queue.add(job, entry)
            progress.count(job, entry, seconds)
            if time.monotonic() - written > MANIFEST_EVERY_S:
                _write_manifest(folder, config, queue)
                written = time.monotonic()


def _write_manifest(folder: Path, config: CollectConfig, queue: TaskQueue) -> Manifest:
    manifest = Manifest(
        size=config.size,
        frame_size=frame_size(config.size),
        renderer=config.renderer,
        split=config.split,
        randomise=read_factors(config.randomise),
        shards=tuple(queue.listed()),
    )
    write_manifest(folder, manifest)
    return manifest


def commit() -> str:
    """Git commit of this checkout, with `+` if it has local changes; `unknown` outside a checkout."""
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        found = subprocess.run(("git", *arguments), cwd=root, capture_output=True, check=True)
        return found.stdout.decode(errors="replace").strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class Collector:
    """Worker of a collection: one environment and its loaded checkpoints; called with a job, it writes a shard.

    `attributes`: of every shard. `sources`: fingerprints of the config's sources. `root`: base of checkpoint paths.
    """

    def __init__(
        self,
        folder: Path,
        config: CollectConfig,
        attributes: dict[str, Any],
        sources: list[dict[str, Any]],
        root: Path,
        load_policy: LoadPolicy | None = None,
    ) -> None:
        from sim.env import PickPlaceEnv

        self._folder, self._config, self._attributes, self._sources = folder, config, attributes, sources
        self._root, self._load_policy = root, load_policy
        self._env = PickPlaceEnv(
            image_size=frame_size(config.size), renderer=config.renderer, randomise=config.randomise, split=config.split
        )
        self._trained: dict[str, Callable[[float], Policy]] = {}

    def __call__(self, job: ShardJob) -> tuple[ShardJob, ManifestEntry, float]:
        begin = time.perf_counter()
        episodes = [self.episode(job, number) for number in range(job.first, job.last)]
        source = self._config.sources[job.source]
        own = {"policy": source.policy, "noise": source.noise, "checkpoint": source.checkpoint, "source": job.source}
        own["checkpoint_sha256"] = self._sources[job.source].get("checkpoint_sha256", "")
        entry = write_shard(self._folder / job.name, episodes, {**self._attributes, **own})
        return job, entry, time.perf_counter() - begin

    def episode(self, job: ShardJob, number: int) -> Episode:
        from sim.env import as_action, as_batch

        env, task = self._env, TASKS[job.task]
        rng = np.random.default_rng([self._config.seed, job.source, task.index, number, 1])  # unlike an evaluation's
        policy, noise = self._policy(job.source, rng)
        observation, info = env.reset(seed=int(rng.integers(2**31)), options={"task": task.name})
        frames, states, detected, actions = [], [], [], []
        terminated = truncated = False
        while True:
            frames.append(codec.encode(observation["image"], self._config.codec, self._config.quality))
            states.append(info["state"])
            detected.append(info["successes"])
            if terminated or truncated:
                break
            action = policy.act(as_batch(observation, info), np.array([task.index]), rng)[0]
            actions.append(action)
            observation, _, terminated, truncated, info = env.step(as_action(action))
        return Episode(
            task_index=task.index,
            number=number,
            terminated=terminated,
            noise=noise,
            action=np.stack(actions),
            state=np.stack(states),
            verdict=np.stack(detected),
            frames=tuple(frames),
        )

    def _policy(self, number: int, rng: np.random.Generator) -> tuple[Policy, float]:
        source = self._config.sources[number]
        if source.policy != TRAINED:
            kind = COLLECTORS[source.policy]
            noise = source.noise * (1 - kind.noise_spread * (1 - rng.random()))
            return kind(noise), noise
        if source.checkpoint not in self._trained:
            assert self._load_policy is not None, "a trained policy needs load_policy"
            path, sha256 = str(self._root / source.checkpoint), self._sources[number]["checkpoint_sha256"]
            made = self._load_policy(path, sha256, frame_size(self._config.size), self._config.renderer)
            self._trained[source.checkpoint] = made
        return self._trained[source.checkpoint](source.noise), source.noise
