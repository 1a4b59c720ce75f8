"""Collection: worker processes fill shards with episodes, resumable to exactly the asked number.

Every episode's randomness comes from (seed, source, task, number) alone and a reset leaves nothing of the episode
before, so the bytes of a shard depend neither on the number of workers nor on the machine's part in it, and one that
was interrupted is simply made again.
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
from data.claim import OF_A_SHARD, claim, finished
from data.manifest import Manifest, write_manifest
from data.plan import TRAINED, CollectConfig, ShardJob, plan
from data.progress import Progress
from data.shards import Episode, Row, successes, write_shard
from sim.image_sizes import frame_size
from sim.options import stop_status
from sim.parallel import run_jobs
from sim.policies import COLLECTORS, Policy
from sim.scenes import read_factors
from sim.tasks import TASKS

# Of a checkpoint: (path, sha256, frame_size, renderer) -> its policy for each epsilon. Given away from above, because
# evaluation is above data; eval.policy.exploring is one.
LoadPolicy = Callable[[str, str, int, str], Callable[[float], Policy]]
MANIFEST_EVERY_S = 5.0


def collect(config: CollectConfig, load_policy: LoadPolicy | None = None) -> Manifest:
    """Collect until the dataset holds exactly what was asked for; returns the manifest. `load_policy`, a function that
    can be pickled, is needed where a source is a trained policy."""
    folder = Path(config.out)
    with claim(folder, config) as (config, about):
        jobs = plan(config, about["asked"])
        lanes = Lanes(jobs, config)
        progress = Progress(jobs)
        missing = {task for source in config.sources for task in source.tasks} - {job.task for job in jobs}
        if missing:
            progress.say(f"too few episodes for every task: none of {', '.join(sorted(missing))}")
        try:
            for job, row in list(finished(folder, jobs, about)):  # a shard that is refused leaves the manifest as it is
                lanes.add(job, row)
                progress.count(job, row)
            _fill(folder, config, about, lanes, progress, load_policy)
        except BaseException as error:
            if lanes.rows:
                with contextlib.suppress(OSError):  # what stopped it may be that nothing can be written
                    _write_manifest(folder, config, lanes)
            if not isinstance(error, KeyboardInterrupt):
                raise
            progress.say(f"stopped: {folder} keeps its finished shards; the same command goes on from there")
            raise SystemExit(stop_status(error)) from None
        finally:
            progress.close()
        for text in lanes.ended():
            progress.say(text)
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

    def ended(self) -> Iterator[str]:
        """Of each lane that ended early, in words."""
        for (source, task), end in sorted(self._end.items()):
            asked = max(job.last for job in self.jobs if job.lane == (source, task))
            rate, window = np.mean(self._recent[source, task]), self._config.window
            yield f"{task}: ended after {end} of {asked} episodes, {rate:.0%} of its last {window} succeed"

    def missing(self) -> Iterator[ShardJob]:
        """Shards to make, each when a worker is free for it: its lane may have ended since."""
        for job in self.jobs:
            if job.name not in self.rows and self.wants(job):
                yield job

    def listed(self) -> list[Row]:
        """What a manifest may tell. A lane that may yet end lists no shard beyond a gap: the end might drop it."""
        beyond = {lane: waiting[0].first for lane, waiting in self._waiting.items() if waiting}
        return [
            self.rows[job.name]
            for job in self.jobs
            if job.name in self.rows
            and self.wants(job)
            and not (self._config.until and job.first >= beyond.get(job.lane, job.last))
        ]


def _fill(
    folder: Path,
    config: CollectConfig,
    about: dict[str, Any],
    lanes: Lanes,
    progress: Progress,
    load_policy: LoadPolicy | None,
) -> None:
    """Make the shards that are missing."""
    if next(lanes.missing(), None) is None:
        progress.say(f"{folder}: all {sum(len(row.task) for row in lanes.listed())} episodes are there")
        return
    attributes = {key: about[key] for key in OF_A_SHARD}
    written = time.monotonic()
    worker = (folder.resolve(), config, attributes | {"commit": commit()}, about["sources"], Path.cwd(), load_policy)
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
        found = subprocess.run(("git", *arguments), cwd=root, capture_output=True, check=True)
        return found.stdout.decode(errors="replace").strip()

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

        env, task = self._env, TASKS[job.task]
        rng = np.random.default_rng([self._config.seed, job.source, task.index, number, 1])  # unlike an evaluation's
        policy, noise = self._policy(job.source, rng)
        observation, info = env.reset(seed=int(rng.integers(2**31)), options={"task": task.name})
        frames, states, outcomes, taken = [], [], [], []
        terminated = truncated = False
        while True:
            frames.append(codec.encode(observation["image"], self._config.codec, self._config.quality))
            states.append(info["state"])
            outcomes.append(info["successes"])
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
