"""Episodes of a state benchmark by policies, played in worker processes, in parts that a stopped collection goes on
from. A part depends on its source, the seed and its number alone.

Shapes: `B` episodes of a part, played side by side; `S` observation and `A` action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.seeding import derive_seed
from data.transitions import TransitionDataset, empty_columns, read_transitions, record, write_transitions
from sim.benchmarks.spec import Benchmark, StateEnv
from sim.benchmarks.table import benchmark_by_name
from sim.files import DatasetError
from sim.parallel import run_jobs_here

MAX_EPISODES = 8  # of a part
MAX_WASTE = 50  # parts without a step that is kept, before giving up
Act = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]  # observation [B, S] -> action [B, A]


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """A policy on a task: `content` of its `file`, or none for the benchmark's own controller. Its actions are
    `sampled`, or mean ones plus Gaussian `noise` of this standard deviation."""

    benchmark: str
    task: str
    file: str
    content: bytes | None
    noise: float
    sampled: bool = False

    @property
    def horizon(self) -> int:
        return benchmark_by_name(self.benchmark).horizon


@dataclass(frozen=True, kw_only=True)
class EpisodeSource:
    """`steps` transitions of a behaviour's episodes. `without_falls`: episodes that terminate are left out.
    `random_actions`: probability of a uniform action at the end, to which it falls from 1 part by part; None: there are
    none. `seed_numbers`: what its random numbers depend on."""

    behaviour: Behaviour
    steps: int
    without_falls: bool
    seed_numbers: tuple[int, ...]
    random_actions: float | None = None

    @property
    def episodes(self) -> int:
        """Of a part."""
        return min(MAX_EPISODES, -(-self.steps // self.behaviour.horizon))

    def probability_of_random_actions(self, part: int) -> float:
        if self.random_actions is None:
            return 0.0
        done = min(1.0, part * self.episodes * self.behaviour.horizon / self.steps)
        return 1 - done * (1 - self.random_actions)


# How a behaviour acts, and the metadata of its file. Handed over by the caller, as evaluation is above data:
# eval.behaviour.load_behaviour is one.
LoadBehaviour = Callable[[Behaviour], tuple[Act, dict[str, Any]]]


def collect_parts(
    sources: list[EpisodeSource], load_behaviour: LoadBehaviour, folder: Path, workers: int
) -> list[dict[str, NDArray[Any]]]:
    """The columns of each source's transitions. Parts lie in the folder until the caller removes it."""
    arguments = sources, load_behaviour, folder
    parts: list[list[int]] = [[] for _ in sources]  # steps of each
    with tqdm(total=sum(source.steps for source in sources), unit="step", desc="collect") as progress:
        while jobs := [job for number in range(len(sources)) for job in _next_parts(sources[number], number, parts)]:
            for number, part in jobs:
                parts[number] += [0] * (part + 1 - len(parts[number]))
            for number, part, steps in run_jobs_here(PartPlayer, arguments, jobs, workers):
                parts[number][part] = steps
                progress.update(min(steps, progress.total - progress.n))
    return [_joined(source, folder / str(number), len(parts[number])) for number, source in enumerate(sources)]


def _next_parts(source: EpisodeSource, number: int, parts: list[list[int]]) -> list[tuple[int, int]]:
    """(number of the source, part) of those that are still needed, by the steps that each gave until now."""
    done, steps = len(parts[number]), sum(parts[number])
    if steps >= source.steps:
        return []
    if not steps and done >= MAX_WASTE:
        raise DatasetError(f"{source.behaviour.file}: falls in all of {done * source.episodes} episodes")
    each = steps / done if steps else source.episodes * source.behaviour.horizon
    more = -int(-(source.steps - steps) // each)
    return [(number, part) for part in range(done, done + more)]


class PartPlayer:
    """Worker. Called with (number of the source, part), it writes that part, unless it is there; returns both, and how
    many steps it has."""

    def __init__(self, sources: list[EpisodeSource], load_behaviour: LoadBehaviour, folder: Path) -> None:
        self._sources, self._load_behaviour, self._folder = sources, load_behaviour, folder
        self._playing: tuple[int, Act, list[StateEnv]] | None = None

    def __call__(self, job: tuple[int, int]) -> tuple[int, int, int]:
        number, part = job
        path = self._folder / str(number) / f"{part}.h5"
        try:
            columns = read_transitions(path).columns
        except DatasetError:  # absent, or damaged
            source = self._sources[number]
            benchmark = benchmark_by_name(source.behaviour.benchmark)
            if self._playing is None or self._playing[0] != number:
                for env in self._playing[2] if self._playing else ():
                    env.close()
                envs = [benchmark.collecting_env() for _ in range(source.episodes)]
                self._playing = number, self._load_behaviour(source.behaviour)[0], envs
            columns = play_part(benchmark, source, self._playing[1], self._playing[2], part)
            if len(columns["task"]):
                write_transitions(path, TransitionDataset(benchmark=benchmark, columns=columns, metadata={}))
        return number, part, len(columns["task"])


def play_part(
    benchmark: Benchmark, source: EpisodeSource, act: Act, envs: list[StateEnv], part: int
) -> dict[str, NDArray[Any]]:
    """The columns of an episode of each environment, one after another. A task's own end does not end an episode: the
    transitions after it serve other tasks."""
    task, noise, count = source.behaviour.task, source.behaviour.noise, len(envs)
    index = benchmark.task_index(task)
    columns, probability = (
        empty_columns(benchmark, count, benchmark.horizon),
        source.probability_of_random_actions(part),
    )
    rng = np.random.default_rng(derive_seed(*source.seed_numbers, part))
    seeds = rng.integers(2**31, size=count)
    now = np.stack([env.reset(task, int(seed)) for env, seed in zip(envs, seeds, strict=True)])
    lengths, running = np.zeros(count, int), np.ones(count, np.bool_)
    while running.any():
        action = noisy(act(now, rng), noise, rng)
        if probability:
            drawn = rng.uniform(-1, 1, action.shape).astype(np.float32)
            action = np.where(rng.random((count, 1)) < probability, drawn, action)
        for k in np.flatnonzero(running):
            step = envs[k].step(action[k])
            record(columns, (int(k), int(lengths[k])), now[k], action[k], step, index)
            now[k], running[k] = step.observation, not (step.terminated or step.truncated)
            lengths[k] += 1
    falls = columns["terminated"][range(count), lengths - 1]
    kept = [k for k in range(count) if not (source.without_falls and falls[k])]
    return {
        name: np.concatenate([column[k, : lengths[k]] for k in kept] or [column[0, :0]])
        for name, column in columns.items()
    }


def noisy(action: NDArray[np.float32], noise: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Actions plus Gaussian noise of this standard deviation, clipped to [-1, 1]."""
    if not noise:
        return action
    return (action + noise * rng.standard_normal(action.shape)).clip(-1, 1).astype(np.float32)


def _joined(source: EpisodeSource, folder: Path, parts: int) -> dict[str, NDArray[Any]]:
    """The source's first steps; its last episode may be cut short."""
    found = [read_transitions(path).columns for part in range(parts) if (path := folder / f"{part}.h5").is_file()]
    columns = {name: np.concatenate([part[name] for part in found])[: source.steps] for name in found[0]}
    columns["episode_end"][-1] = True
    return columns
