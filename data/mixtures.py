"""`python -m data collect-state --benchmark walker2d --recipe published`: datasets of the state benchmarks, each task's
transitions from a source of its own: the replay buffer of an online learner, or a policy at work. Stopped anywhere, the
same command goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.locks import lock_file
from data.state_collection import Behaviour, EpisodeSource, LoadBehaviour, collect_parts
from data.transitions import TransitionDataset, parse_transitions, read_transitions, write_transitions
from sim.benchmarks.spec import Benchmark
from sim.benchmarks.table import benchmark_by_name
from sim.files import DatasetError
from sim.options import changed, check_choice, check_least, check_seed, option

CONTROLLER = "controller"  # in place of a file: the benchmark's own
COLLECTION = 3  # raised when controllers, environments or their playing change: the same sources make other data then


@dataclass(frozen=True, kw_only=True)
class Source:
    """`steps` transitions of a task from `file`: a dataset (.h5), whose first ones are taken; policies (.pt), of this
    benchmark or of the one that its controller commands; or `controller`. `without_falls`: of policies, episodes in
    which the body falls are left out. `noise`: standard deviation of what is added to mean actions; 0: policies are
    sampled. `random_actions`: probability of a uniform action in the last episodes, which falls from 1 in the first."""

    task: str
    file: str
    steps: int
    without_falls: bool = False
    noise: float = 0.0
    random_actions: float | None = None


def _composition(**sources: tuple[str, int] | tuple[str, int, bool]) -> tuple[Source, ...]:
    """TASK=(FILE, STEPS) or TASK=(FILE, STEPS, WITHOUT_FALLS), `_` for `-` in the name of a task."""
    names = ("file", "steps", "without_falls")
    return tuple(
        Source(task=task.replace("_", "-"), **dict(zip(names, values, strict=False)))  # type: ignore[arg-type]
        for task, values in sources.items()
    )


def _walks(file: str, steps: int) -> tuple[Source, ...]:
    """So many steps of both tasks of dmc-walker from one file."""
    return _composition(walk=(file, steps), run=(file, steps))


def _each_goal(goals: int, file: str, steps: int) -> tuple[Source, ...]:
    """So many steps to each goal of a maze, with D4RL's noise."""
    return tuple(Source(task=f"goal-{number}", file=file, steps=steps, noise=0.2) for number in range(goals))


def _trained(name: str) -> str:
    return f"models/trained/{name}.pt"


def _expert(task: str, steps: int) -> Source:
    """The controller of the desk, which always succeeds."""
    return Source(task=task, file=CONTROLLER, steps=steps, noise=0.1)


def _like_replay(task: str, steps: int) -> Source:
    """The same among ever fewer random actions, in place of what a learner has seen."""
    return Source(task=task, file=CONTROLLER, steps=steps, noise=0.1, random_actions=0.3)


def _desk(steps_of_experts: int, replay: Callable[[str], Source]) -> tuple[Source, ...]:
    """CDS, table 3: two experts and two replay buffers."""
    experts = {task: _expert(task, steps_of_experts) for task in ("door-open", "drawer-close")}
    return experts["door-open"], replay("door-close"), replay("drawer-open"), experts["drawer-close"]


# Compositions of CDS, tables 1 and 3 (`published`: medium-replay, medium, expert), and `quick` ones, which need no
# training: a dataset in a minute. Sizes are the paper's; of halfcheetah and ant it gives trajectories alone (500
# medium, 5 and 20 expert ones). Its walker2d expert never falls; ours does in 40% of its episodes. Of a maze, a million
# steps.
RECIPES: dict[str, dict[str, tuple[Source, ...]]] = {
    "walker2d": {
        "published": _composition(
            run_forward=("runs/walker2d-sac/replay.h5", 109_900),
            run_backward=(_trained("walker2d-medium"), 31_298),
            jump=(_trained("walker2d-expert"), 5_000, True),
        ),
        "medium-replay": _composition(
            run_forward=("runs/walker2d-sac/replay.h5", 109_900),
            run_backward=("runs/walker2d-sac/replay.h5", 109_900),
            jump=("runs/walker2d-sac/replay.h5", 109_511),
        ),
        "medium": _composition(
            run_forward=(_trained("walker2d-medium"), 27_646),
            run_backward=(_trained("walker2d-medium"), 31_298),
            jump=(_trained("walker2d-medium"), 100_000),
        ),
        "quick": _composition(
            run_forward=(_trained("walker2d-medium"), 5_000),
            run_backward=(_trained("walker2d-medium"), 5_000),
            jump=(_trained("walker2d-expert"), 2_000),
        ),
    },
    "halfcheetah": {
        "published": _composition(
            run_forward=("runs/halfcheetah-sac/replay.h5", 109_900),
            run_backward=(_trained("halfcheetah-medium"), 500_000),
            jump=(_trained("halfcheetah-expert"), 5_000),
        ),
        "quick": _composition(
            run_forward=(_trained("halfcheetah-medium"), 5_000),
            run_backward=(_trained("halfcheetah-medium"), 5_000),
            jump=(_trained("halfcheetah-expert"), 2_000),
        ),
    },
    "ant": {
        "published": _composition(
            run_forward=("runs/ant-sac/replay.h5", 109_900),
            run_backward=(_trained("ant-medium"), 500_000),
            jump=(_trained("ant-expert"), 20_000),
        ),
        "quick": _composition(
            run_forward=(_trained("ant-medium"), 5_000),
            run_backward=(_trained("ant-medium"), 5_000),
            jump=(_trained("ant-expert"), 2_000),
        ),
    },
    "dmc-walker": {
        "published": _composition(
            walk=(_trained("dmc-walker-medium"), 100_000), run=("runs/dmc-walker-sac/replay.h5", 300_000)
        ),
        "medium": _walks(_trained("dmc-walker-medium"), 300_000),  # this and the next: groups of HCSAC's table 1
        "replay": _walks("runs/dmc-walker-sac/replay.h5", 300_000),
        "quick": _walks(_trained("dmc-walker-medium"), 5_000),
    },
    "desk": {
        "published": _desk(2_000, lambda task: Source(task=task, file="runs/desk-sac/replay.h5", steps=152_000)),
        "scripted": _desk(2_000, lambda task: _like_replay(task, 152_000)),
        "quick": _desk(1_000, lambda task: _like_replay(task, 8_000)),
    },
    "pointmaze-medium": {
        "published": _each_goal(3, CONTROLLER, 333_000),
        "quick": _each_goal(3, CONTROLLER, 5_000),
    },
    "pointmaze-large": {
        "published": _each_goal(7, CONTROLLER, 143_000),
        "quick": _each_goal(7, CONTROLLER, 5_000),
    },
    "antmaze-medium": {
        "published": _each_goal(3, _trained("ant-direction"), 333_000),
        "quick": _each_goal(3, _trained("ant-direction"), 5_000),
    },
    "antmaze-large": {
        "published": _each_goal(7, _trained("ant-direction"), 143_000),
        "quick": _each_goal(7, _trained("ant-direction"), 5_000),
    },
}
REPLAYS = {  # file of a source -> arguments of the training that makes it
    "runs/walker2d-sac/replay.h5": "train sac --benchmark walker2d --seed 1 --steps 110000",
    "runs/halfcheetah-sac/replay.h5": "train sac --benchmark halfcheetah --steps 110000",
    "runs/ant-sac/replay.h5": "train sac --benchmark ant --steps 110000",
    "runs/dmc-walker-sac/replay.h5": "train sac --benchmark dmc-walker --steps 300000",
    "runs/desk-sac/replay.h5": "train sac --benchmark desk --tasks door-close,drawer-open --steps 152000",
}


@dataclass(frozen=True, kw_only=True)
class CollectStateConfig:
    """Every option of `python -m data collect-state`."""

    benchmark: str = option("walker2d", f"of {', '.join(RECIPES)}")
    recipe: str = option("published", "composition of the dataset: published (CDS, table 3), quick, and others")
    sources: tuple[str, ...] = option((), "TASK=FILE:STEPS or TASK=FILE:STEPS:NOISE each, in place of the recipe's")
    out: str = option("", "the file; default datasets/BENCHMARK-RECIPE.h5. One of the same sources is left as it is")
    seed: int = option(0, "of the policies' actions and of the first states")
    workers: int = option(len(os.sched_getaffinity(0)), "processes that play the policies")

    def __post_init__(self) -> None:
        check_seed(self, "seed")
        check_least(self, 1, "workers")
        benchmark = benchmark_by_name(self.benchmark)
        if not self.sources:
            check_choice("benchmark with recipes", self.benchmark, tuple(RECIPES))
            check_choice(f"recipe of {self.benchmark}", self.recipe, tuple(RECIPES[self.benchmark]))
        tasks = [source.task for source in self.composition]
        for task in tasks:
            benchmark.task_index(task)
            if tasks.count(task) > 1:
                raise ValueError(f"task {task} has two sources")

    @property
    def composition(self) -> tuple[Source, ...]:
        if self.sources:
            return tuple(read_source(text) for text in self.sources)
        return RECIPES[self.benchmark][self.recipe]

    @property
    def path(self) -> Path:
        return Path(self.out or f"datasets/{self.benchmark}-{self.recipe}.h5")


def read_source(text: str) -> Source:
    """TASK=FILE:STEPS or TASK=FILE:STEPS:NOISE"""
    found = re.fullmatch(r"([^=]+)=(.+?):0*([1-9]\d*)(?::(\d+(?:\.\d+)?))?", text)
    if not found:
        raise ValueError(f"a source is TASK=FILE:STEPS or TASK=FILE:STEPS:NOISE, got {text!r}")
    task, file, steps, noise = found.groups()
    return Source(task=task, file=file, steps=int(steps), noise=float(noise or 0))


def missing(config: CollectStateConfig) -> list[str]:
    """Arguments of the trainings whose replay buffers the recipe needs and that are not there."""
    absent = [source.file for source in config.composition if not Path(source.file).exists()]
    return list(dict.fromkeys(REPLAYS[file] for file in absent if file in REPLAYS))


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A source that has been read: its transitions, or the episodes that make them; and their metadata."""

    source: Source
    metadata: dict[str, Any]
    columns: dict[str, NDArray[Any]] | None = None
    episodes: EpisodeSource | None = None


def make(config: CollectStateConfig, load_behaviour: LoadBehaviour) -> TransitionDataset:
    """The dataset, which is written too, unless its file is there already. DatasetError where that was made of other
    sources, or where a source is missing."""
    benchmark, out = benchmark_by_name(config.benchmark), config.path
    opened = [
        _open(benchmark, source, (config.seed, number), load_behaviour)
        for number, source in enumerate(config.composition)
    ]
    metadata: dict[str, Any] = {each.source.task: each.metadata for each in opened}
    steps = {each.source.task: each.source.steps for each in opened}
    wanted = _content(benchmark, metadata, [steps.get(name, 0) for name in benchmark.task_names])
    if out.exists():
        return _already_there(out, wanted)
    identity = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:12]
    parts = out.with_name(f".{out.stem}-{identity}.parts")
    with lock_file(parts / "lock", f"{out}: another command is collecting it"):
        if out.exists():  # by another command, meanwhile
            return _already_there(out, wanted)
        played = collect_parts(
            [each.episodes for each in opened if each.episodes], load_behaviour, parts, config.workers
        )
        columns_of = iter(played)
        columns = [next(columns_of) if each.columns is None else each.columns for each in opened]
        recipe = {} if config.sources else {"recipe": config.recipe}
        made = TransitionDataset(
            benchmark=benchmark,
            columns={name: np.concatenate([part[name] for part in columns]) for name in columns[0]},
            metadata=recipe | metadata,
        )
        write_transitions(out, made)
        for each in out.parent.iterdir():  # also the parts of sources that have changed since
            if re.fullmatch(rf"\.{re.escape(out.stem)}-[0-9a-f]{{12}}\.parts", each.name):
                shutil.rmtree(each)
    return made


def _already_there(out: Path, wanted: dict[str, Any]) -> TransitionDataset:
    try:
        found = read_transitions(out)
    except DatasetError as error:
        raise DatasetError(f"{error}; choose another --out or delete it") from None
    steps = np.bincount(found.columns["task"], minlength=len(found.benchmark.tasks)).tolist()
    tasks = {name: entry for name, entry in found.metadata.items() if name in found.benchmark.task_names}
    if differs := changed(_content(found.benchmark, tasks, steps), wanted):
        raise DatasetError(f"{out}: already there, made of other sources: {differs}; choose another --out or delete it")
    print(f"{out}: already there, made of these sources", file=sys.stderr)
    return found


def _content(benchmark: Benchmark, metadata: dict[str, dict[str, Any]], steps: list[int]) -> dict[str, Any]:
    """Identity of a dataset, entry by entry; `steps` of each of the benchmark's tasks."""
    counts = {f"{task} steps": count for task, count in zip(benchmark.task_names, steps, strict=True)}
    entries = {f"{task} {key}": value for task, entry in metadata.items() for key, value in entry.items()}
    return {"benchmark": benchmark.name, "order": list(metadata), **counts, **entries}


def _open(benchmark: Benchmark, source: Source, numbers: tuple[int, ...], load_behaviour: LoadBehaviour) -> Opened:
    file = Path(source.file)
    if source.file != CONTROLLER and not file.is_file():
        remedy = f"; python -m {REPLAYS[source.file]} makes it" if source.file in REPLAYS else ""
        raise DatasetError(f"{file}: no such replay or file of policies{remedy}")
    content = None if source.file == CONTROLLER else file.read_bytes()
    known = {"file": file.name, "sha256": hashlib.sha256(content).hexdigest()} if content is not None else {}
    if content is not None and file.suffix == ".h5":
        columns = _first_steps(file, content, benchmark, source.task, source.steps)
        return Opened(source=source, metadata={"kind": "replay", **known}, columns=columns)
    behaviour = Behaviour(
        benchmark=benchmark.name,
        task=source.task,
        file=source.file,
        content=content,
        noise=source.noise,
        sampled=not source.noise,
    )
    about = load_behaviour(behaviour)[1]  # which refuses policies of something else
    kind = "controller" if content is None else "policy"
    names = ("noise", "without_falls", "random_actions")
    options = {name: value for name in names if (value := getattr(source, name)) != getattr(Source, name)}
    metadata = {"kind": kind, "collection": COLLECTION, "seed": numbers[0], **about, **known, **options}
    episodes = EpisodeSource(
        behaviour=behaviour,
        steps=source.steps,
        without_falls=source.without_falls,
        random_actions=source.random_actions,
        seed_numbers=numbers,
    )
    return Opened(source=source, metadata=metadata, episodes=episodes)


def _first_steps(file: Path, content: bytes, benchmark: Benchmark, task: str, steps: int) -> dict[str, NDArray[Any]]:
    found = parse_transitions(file, content)
    if found.benchmark is not benchmark:
        raise DatasetError(f"{file}: holds transitions of {found.benchmark.name}, not of {benchmark.name}")
    own = np.flatnonzero(found.columns["task"] == benchmark.task_index(task))[:steps]
    if len(own) < steps:
        raise DatasetError(f"{file}: holds {len(own)} steps of {benchmark.name}'s task {task}, not {steps}")
    part = {name: column[own] for name, column in found.columns.items()}
    part["episode_end"][-1] = True
    return part


def describe(dataset: TransitionDataset) -> str:
    """Transitions, episodes and mean return (or success rate) of each task's own data; and where tasks are successes
    or not, how many of each task's transitions are one of each other's."""
    columns, benchmark = dataset.columns, dataset.benchmark
    rewards, successes = dataset.rewards, dataset.successes
    head = f"{benchmark.name}, {len(dataset)} transitions"
    lines = [head, f"{'task':<16}{'steps':>9}{'episodes':>10}{benchmark.metric:>9}"]
    for index, task in enumerate(benchmark.task_names):
        own = columns["task"] == index
        episodes = int(columns["episode_end"][own].sum())
        mean = "-"
        if episodes and benchmark.metric == "return":
            mean = f"{rewards[own, index].sum() / episodes:.1f}"
        elif episodes:
            mean = f"{len(np.unique(dataset.episode[own & successes[:, index]])) / episodes:.0%}"
        kind = dataset.metadata.get(task, {}).get("kind", "")
        lines.append(f"{task:<16}{own.sum():>9}{episodes:>10}{mean:>9}  {kind}")
    if benchmark.metric == "success":
        lines += ["", f"{'successes of':<16}" + "".join(f"{task:>14}" for task in benchmark.task_names)]
        failed, succeeded = dataset.steps_by_outcome
        for source, task in enumerate(benchmark.task_names):
            shares = succeeded[:, source] / np.maximum(1, failed[:, source] + succeeded[:, source])
            lines.append(f"{task:<16}" + "".join(f"{share:>14.1%}" for share in shares))
    return "\n".join(lines)
