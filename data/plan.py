"""Plan of a collection: its options, its sources of episodes, and the list of shards to write."""

from __future__ import annotations

import dataclasses
import functools
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data import codec
from sim.appearances import SPLITS
from sim.drawing import RENDERERS
from sim.image_sizes import check_size
from sim.options import check_choice, check_least, check_seed, option
from sim.parallel import BACKENDS
from sim.policies import COLLECTORS
from sim.scenes import FACTORS, read_factors
from sim.tasks import TASK_NAMES, check_tasks

CONFIG = "collect.json"  # options of the collection, beside the manifest
TRAINED = "checkpoint"
POLICIES = (*COLLECTORS, TRAINED)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Episodes of these tasks by one policy; `noise` of a checkpoint is epsilon, of epsilon-greedy."""

    tasks: tuple[str, ...]
    policy: str
    noise: float
    checkpoint: str
    episodes: int  # total, dealt evenly to the tasks

    def __post_init__(self) -> None:
        check_tasks(self.tasks)
        check_choice("policy", self.policy, POLICIES)
        if not self.noise >= 0 or (self.policy == TRAINED and self.noise > 1):
            raise ValueError(f"noise is 0 or more, and at most 1 for a checkpoint, got {self.noise}")
        check_least(self, 1, "episodes")
        if (self.policy == TRAINED) != bool(self.checkpoint):
            raise ValueError(
                f"policy {TRAINED} and a checkpoint go together, got {self.policy} and {self.checkpoint!r}"
            )
        if self.policy == TRAINED and self.noise == 1:
            raise ValueError(f"with noise 1 every action of a {TRAINED} is random: give its part, such as --noise 0.2")


SOURCE_FIELDS = tuple(Source.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Options of a collection. `size`: the network's crop in px; frames are a little larger (sim/image_sizes.py)."""

    out: str = field(metadata={"help": "folder of the dataset"})
    episodes: int = option(2000, "total, dealt evenly to the tasks")
    size: int = option(472, "image size of the network, px")
    workers: int = option(len(os.sched_getaffinity(0)), "processes")
    tasks: tuple[str, ...] = option(TASK_NAMES, "tasks to collect")
    policy: str = option("crude", f"of {', '.join(POLICIES)}")
    noise: float = option(
        1.0, "of the policy; scripted: its maximum over the episodes; checkpoint: epsilon of epsilon-greedy"
    )
    checkpoint: str = option("", "trained policy, for --policy checkpoint")
    mix: str = option("", "TOML file of [[source]] tables: tasks, policy, noise, checkpoint, episodes (of each task)")
    until: float = option(0.0, "stop a task early when its last --window episodes succeed at this rate; 0: never")
    window: int = option(100, "number of episodes over which --until takes the rate")
    seed: int = option(0, "of all random numbers")
    renderer: str = option("auto", f"of {', '.join(RENDERERS)}")
    randomise: str = option("all", f"all, none, or some of {', '.join(FACTORS)}")
    split: str = option("train", f"of {', '.join(SPLITS)}: appearances and sizes, disjoint")
    codec: str = option("jpeg", f"of {', '.join(codec.CODECS)}: zstd is lossless, at 2 to 4 times the size")
    quality: int = option(95, "of JPEG frames, 1 to 100")
    episodes_per_shard: int = option(20, "number of episodes in a shard")
    backend: str = option("local", f"of {', '.join(BACKENDS)}: processes here, or on the Ray cluster of RAY_ADDRESS")

    def __post_init__(self) -> None:
        check_size(self.size)
        check_choice("renderer", self.renderer, RENDERERS)
        check_choice("split", self.split, SPLITS)
        check_choice("codec", self.codec, codec.CODECS)
        check_choice("backend", self.backend, BACKENDS)
        read_factors(self.randomise)
        check_seed(self, "seed")
        check_least(self, 1, "workers", "episodes_per_shard", "window")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is 1 to 100, got {self.quality}")
        if not 0 <= self.until <= 1:
            raise ValueError(f"until is a rate between 0 and 1, got {self.until}")
        given = [name for name in SOURCE_FIELDS if getattr(self, name) != self.__dataclass_fields__[name].default]
        if self.mix and given:
            raise ValueError(f"the mix says {', '.join(given)} for each source: leave --{given[0]} out")
        _ = self.sources  # runs the checks of each source

    @functools.cached_property
    def sources(self) -> tuple[Source, ...]:
        """The sources of the mix, or the single source given by the options."""
        if not self.mix:
            return (Source(**{name: getattr(self, name) for name in SOURCE_FIELDS}),)
        try:
            with Path(self.mix).open("rb") as file:
                tables = tomllib.load(file).get("source")
            if not isinstance(tables, list) or not tables:
                raise ValueError("holds no [[source]] table")
            return tuple(_read_source(table) for table in tables)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.mix}: {error}") from error


def _read_source(table: dict[str, Any]) -> Source:
    fields: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(CollectConfig)}
    values = {name: fields[name] for name in SOURCE_FIELDS if name != "episodes"} | table
    for name in values:
        check_choice("entry of a source", name, SOURCE_FIELDS)
    tasks, episodes = values["tasks"], values.get("episodes")
    if not isinstance(tasks, (list, tuple)):
        raise ValueError(f"tasks is a list of names, got {tasks!r}")
    if type(episodes) is not int:
        raise ValueError(f"episodes is a whole number, of each task, got {episodes!r}")
    values |= {"tasks": tuple(tasks), "noise": float(values["noise"]), "episodes": episodes * len(tasks)}
    return Source(**values)


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """A shard to write: episodes `first` to `last` (excluded) of one task of one source."""

    source: int
    task: str
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.source}-{self.first:06d}.h5"

    @property
    def key(self) -> tuple[int, str]:
        return self.source, self.task


def plan(config: CollectConfig, asked: Sequence[Sequence[int]]) -> list[ShardJob]:
    """All shards, interleaved so that the tasks of all sources advance together.

    `asked`: number of episodes of each source, at the first request and each later one. A dataset that grows keeps
    every shard, even one that is not full, and continues after it.
    """
    jobs = []
    for index, source in enumerate(config.sources):
        for position, task in enumerate(source.tasks):
            ends = [episodes_of_task(counts[index], len(source.tasks), position) for counts in asked]
            for begin, end in zip([0, *ends], ends, strict=False):
                for first in range(begin, end, config.episodes_per_shard):
                    last = min(first + config.episodes_per_shard, end)
                    jobs.append(((first + 0.5) / ends[-1], ShardJob(source=index, task=task, first=first, last=last)))
    return [job for _, job in sorted(jobs, key=lambda pair: pair[0])]


def episodes_of_task(episodes: int, tasks: int, position: int) -> int:
    """Number of episodes of the task at this position when they are dealt round-robin."""
    return episodes // tasks + (position < episodes % tasks)
