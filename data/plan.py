"""What a collection is to make: its options, its sources of episodes, and the shards that hold them."""

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

CONFIG = "collect.json"  # what a folder collects, beside its manifest
TRAINED = "checkpoint"
POLICIES = (*COLLECTORS, TRAINED)


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


OF_A_SOURCE = tuple(Source.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """What to collect. `size` is the network's crop in px; frames are stored a little larger (sim/image_sizes.py)."""

    out: str = field(metadata={"help": "folder of the dataset"})
    episodes: int = option(2000, "in all; the tasks take turns")
    size: int = option(472, "what the network will see, px")
    workers: int = option(len(os.sched_getaffinity(0)), "processes")
    tasks: tuple[str, ...] = option(TASK_NAMES, "tasks to collect")
    policy: str = option("crude", f"of {', '.join(POLICIES)}")
    noise: float = option(
        1.0, "of the policy; scripted: each episode at or below it; checkpoint: of a random action, epsilon"
    )
    checkpoint: str = option("", "of a trained policy")
    mix: str = option("", "TOML file of [[source]] tables: tasks, policy, noise, checkpoint, episodes (of each task)")
    until: float = option(0.0, "end a task when its last --window episodes succeed at this rate; 0: never")
    window: int = option(100, "episodes that --until looks at")
    seed: int = option(0, "of everything")
    renderer: str = option("auto", f"of {', '.join(RENDERERS)}")
    randomise: str = option("all", f"all, none, or some of {', '.join(FACTORS)}")
    split: str = option("train", f"of {', '.join(SPLITS)}: looks and sizes that never occur in the other")
    codec: str = option("jpeg", f"of {', '.join(codec.CODECS)}: zstd loses nothing, in 2 to 4 times the space")
    quality: int = option(95, "of JPEG frames, 1 to 100")
    episodes_per_shard: int = option(20, "episodes in one file")
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
            with Path(self.mix).open("rb") as file:
                tables = tomllib.load(file).get("source")
            if not isinstance(tables, list) or not tables:
                raise ValueError("holds no [[source]] table")
            return tuple(_read_source(table) for table in tables)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.mix}: {error}") from error


def _read_source(table: dict[str, Any]) -> Source:
    fields: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(CollectConfig)}
    values = {name: fields[name] for name in OF_A_SOURCE if name != "episodes"} | table
    for name in values:
        check_choice("entry of a source", name, OF_A_SOURCE)
    tasks, episodes = values["tasks"], values.get("episodes")
    if not isinstance(tasks, (list, tuple)):
        raise ValueError(f"tasks is a list of names, got {tasks!r}")
    if type(episodes) is not int:
        raise ValueError(f"episodes is a whole number, of each task, got {episodes!r}")
    values |= {"tasks": tuple(tasks), "noise": float(values["noise"]), "episodes": episodes * len(tasks)}
    return Source(**values)


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Episodes `first` to `last` (not included) of one task of one source."""

    source: int
    task: str
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.source}-{self.first:06d}.h5"

    @property
    def lane(self) -> tuple[int, str]:
        return self.source, self.task


def plan(config: CollectConfig, asked: Sequence[Sequence[int]]) -> list[ShardJob]:
    """All shards, in an order in which the tasks of all sources advance together.

    `asked` is how many episodes of each source were asked for, the first time and each time since: a dataset that
    grows keeps every shard, also one that is not full, and goes on after it.
    """
    jobs = []
    for index, source in enumerate(config.sources):
        for position, task in enumerate(source.tasks):
            ends = [share_of(counts[index], len(source.tasks), position) for counts in asked]
            for begin, end in zip([0, *ends], ends, strict=False):
                for first in range(begin, end, config.episodes_per_shard):
                    last = min(first + config.episodes_per_shard, end)
                    jobs.append(((first + 0.5) / ends[-1], ShardJob(source=index, task=task, first=first, last=last)))
    return [job for _, job in sorted(jobs, key=lambda pair: pair[0])]


def share_of(episodes: int, tasks: int, position: int) -> int:
    """How many of the episodes are of the task at this position, where the tasks take turns."""
    return episodes // tasks + (position < episodes % tasks)
