"""`python -m data collect-state --benchmark walker2d --recipe published`: datasets of the state benchmarks, each task's
transitions from a source of its own: the replay buffer of an online learner, or a policy at work.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.transitions import (
    TransitionDataset,
    empty_columns,
    parse_transitions,
    read_transitions,
    record,
    write_transitions,
)
from sim.benchmarks.spec import Benchmark
from sim.benchmarks.table import BENCHMARKS, benchmark_by_name
from sim.files import DatasetError, sha256
from sim.options import changed, check_choice, check_seed, option

Act = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # observation [S] -> action [A]
# (file, benchmark, task, seed) -> the task's policy in a file of policies, and its metadata. Handed over by the caller,
# as evaluation is above data: eval.returns.exploring is one.
LoadPolicy = Callable[[Path, Benchmark, str, list[int]], tuple[Act, dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """`steps` transitions of a task from `file`: a dataset (.h5), whose first ones are taken, or policies (.pt).
    `without_falls`: of policies, episodes in which the body falls are played again."""

    task: str
    file: str
    steps: int
    without_falls: bool = False


def _composition(**sources: tuple[str, int] | tuple[str, int, bool]) -> tuple[Source, ...]:
    """TASK=(FILE, STEPS) or TASK=(FILE, STEPS, WITHOUT_FALLS), `_` for `-` in the name of a task."""
    names = ("file", "steps", "without_falls")
    return tuple(
        Source(task=task.replace("_", "-"), **dict(zip(names, values, strict=False)))  # type: ignore[arg-type]
        for task, values in sources.items()
    )


def _trained(name: str) -> str:
    return f"models/trained/{name}.pt"


# Compositions of CDS, tables 1 and 3 (`published`: medium-replay, medium, expert), and `quick` ones, which need no
# training: a dataset in a minute. Sizes are the paper's; of halfcheetah and ant it gives trajectories alone (500
# medium, 5 and 20 expert ones). Its walker2d expert never falls; ours does in 40% of its episodes.
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
}
REPLAYS = {  # file of a source -> arguments of the training that makes it
    "runs/walker2d-sac/replay.h5": "train sac --benchmark walker2d --seed 1 --steps 110000",
    "runs/halfcheetah-sac/replay.h5": "train sac --benchmark halfcheetah --steps 110000",
    "runs/ant-sac/replay.h5": "train sac --benchmark ant --steps 110000",
}


@dataclass(frozen=True, kw_only=True)
class CollectStateConfig:
    """Every option of `python -m data collect-state`."""

    benchmark: str = option("walker2d", f"of {', '.join(BENCHMARKS)}")
    recipe: str = option("published", "composition of the dataset: published (CDS, table 3), quick, and others")
    sources: tuple[str, ...] = option((), "TASK=FILE:STEPS each, in place of the recipe's")
    out: str = option("", "the file; default datasets/BENCHMARK-RECIPE.h5. One of the same sources is left as it is")
    seed: int = option(0, "of the policies' actions and of the first states")

    def __post_init__(self) -> None:
        check_seed(self, "seed")
        benchmark = benchmark_by_name(self.benchmark)
        if not self.sources:
            known = RECIPES.get(self.benchmark, {})
            check_choice(f"recipe of {self.benchmark}", self.recipe, tuple(known))
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
    """TASK=FILE:STEPS"""
    task, _, rest = text.partition("=")
    file, _, steps = rest.rpartition(":")
    if not file or not steps.isdecimal() or not int(steps):
        raise ValueError(f"a source is TASK=FILE:STEPS, got {text!r}")
    return Source(task=task, file=file, steps=int(steps))


def missing(config: CollectStateConfig) -> list[str]:
    """Arguments of the trainings whose replay buffers the recipe needs and that are not there."""
    absent = [source.file for source in config.composition if not Path(source.file).exists()]
    return list(dict.fromkeys(REPLAYS[file] for file in absent if file in REPLAYS))


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A source that has been read, with the metadata of its transitions."""

    task: str
    steps: int
    metadata: dict[str, Any]
    columns: Callable[[], dict[str, NDArray[Any]]]


def make(config: CollectStateConfig, load_policy: LoadPolicy) -> TransitionDataset:
    """The dataset, which is written too, unless its file is there already. DatasetError where that was made of other
    sources, or where a source is missing."""
    benchmark, out = benchmark_by_name(config.benchmark), config.path
    opened = [
        _open(benchmark, source, config.seed, number, load_policy) for number, source in enumerate(config.composition)
    ]
    metadata: dict[str, Any] = {source.task: source.metadata for source in opened}
    if out.exists():
        steps = {source.task: source.steps for source in opened}
        wanted = _content(benchmark, metadata, [steps.get(name, 0) for name in benchmark.task_names])
        found = _already_there(out, wanted)
        print(f"{out}: already there, made of these sources", file=sys.stderr)
        return found
    parts = [source.columns() for source in opened]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    recipe = {} if config.sources else {"recipe": config.recipe}
    made = TransitionDataset(benchmark=benchmark, columns=columns, metadata=recipe | metadata)
    write_transitions(out, made)
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
    return found


def _content(benchmark: Benchmark, metadata: dict[str, dict[str, Any]], steps: list[int]) -> dict[str, Any]:
    """Identity of a dataset, entry by entry; `steps` of each of the benchmark's tasks."""
    counts = {f"{task} steps": count for task, count in zip(benchmark.task_names, steps, strict=True)}
    entries = {f"{task} {key}": value for task, entry in metadata.items() for key, value in entry.items()}
    return {"benchmark": benchmark.name, "order": list(metadata), **counts, **entries}


def _open(benchmark: Benchmark, source: Source, seed: int, number: int, load_policy: LoadPolicy) -> Opened:
    file, task, steps = Path(source.file), source.task, source.steps
    if file.suffix == ".h5":
        if not file.is_file():
            remedy = f"; python -m {REPLAYS[source.file]} makes it" if source.file in REPLAYS else ""
            raise DatasetError(f"{file}: no such replay{remedy}")
        content = file.read_bytes()
        part = _first_steps(file, content, benchmark, task, steps)
        metadata: dict[str, Any] = {"kind": "replay", "file": file.name, "sha256": hashlib.sha256(content).hexdigest()}
        return Opened(task=task, steps=steps, metadata=metadata, columns=lambda: part)
    before = sha256(file) if file.is_file() else None
    act, known = load_policy(file, benchmark, task, [seed, number])
    if sha256(file) != before:
        raise DatasetError(f"{file}: changed while it was read; try again when it is whole")
    metadata = {"kind": "policy", "file": file.name, "seed": seed, **known, "sha256": before}
    if source.without_falls:
        metadata["without_falls"] = True
    of_source = benchmark, task, act, steps, seed * 1000 + number, source.without_falls
    play = functools.partial(collect_transitions, *of_source)
    return Opened(task=task, steps=steps, metadata=metadata, columns=play)


def _first_steps(file: Path, content: bytes, benchmark: Benchmark, task: str, steps: int) -> dict[str, NDArray[Any]]:
    found = parse_transitions(file, content)
    own = np.flatnonzero(found.columns["task"] == benchmark.task_index(task))[:steps]
    if found.benchmark is not benchmark or len(own) < steps:
        raise DatasetError(f"{file}: holds {len(own)} steps of {benchmark.name}'s task {task}, not {steps}")
    part = {name: column[own] for name, column in found.columns.items()}
    part["episode_end"][-1] = True
    return part


def collect_transitions(
    benchmark: Benchmark, task: str, act: Act, steps: int, seed: int, without_falls: bool = False
) -> dict[str, NDArray[Any]]:
    """The columns of so many transitions of consecutive episodes; the last episode may be cut short. A task's own end
    does not end an episode: the transitions after it serve other tasks. `without_falls`: an episode that terminates
    early is left out."""
    columns, index = empty_columns(benchmark, steps), benchmark.task_index(task)
    env = benchmark.make_env()
    now, place, first = env.reset(task, seed), 0, 0
    with tqdm(total=steps, desc=task, unit="step") as progress:
        while place < steps:
            action = act(now)
            step = env.step(action)
            record(columns, (place,), now, action, step, index)
            place += 1
            now = step.observation
            if step.terminated or step.truncated:
                now, place = env.reset(task), first if step.terminated and without_falls else place
                first = place
            progress.n = place
            progress.update(0)
    columns["episode_end"][-1] = True
    env.close()
    return columns


def describe(dataset: TransitionDataset) -> str:
    """Transitions, episodes and mean return (or success rate) of each task's own data."""
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
    return "\n".join(lines)
