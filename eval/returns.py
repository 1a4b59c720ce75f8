"""`python -m eval.returns --policy runs/walker2d/policy.pt`: play a file of state policies, in worker processes. Or a
behaviour policy: `--policy controller --benchmark pointmaze-large`; with a file of policies that a controller commands,
`--policy models/trained/ant-direction.pt --benchmark antmaze-large --noise 0.2`.

Deterministic actions; the first state of an episode depends on (seed, its number) alone. The benchmark's metric decides
what is reported: undiscounted returns, or success rates with Wilson intervals.

Shapes: `E` members, `B` episodes played side by side, `S` observation and `A` action dimensions.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from data.mixtures import CONTROLLER
from data.seeding import derive_seed
from data.state_collection import Act, Behaviour, noisy
from eval.behaviour import behaviour_of, load_behaviour
from eval.intervals import wilson
from models.checkpoint import RUN_CONFIG, CheckpointFile
from models.policy_files import Member, PolicyFile, load_policies, pack_policies
from sim.benchmarks.films import film as film_episode
from sim.benchmarks.spec import Benchmark
from sim.benchmarks.table import benchmark_by_name
from sim.files import check_writable, write_atomic
from sim.film_files import FILM_PAUSE_MS, FORMATS, write_film
from sim.options import Parser, add_options, check_choice, check_least, check_seed, from_options, option, run_command
from sim.parallel import run_jobs_here

EVALUATION_SEED = 1  # of the episodes that every member of every run plays
FILM_PX = 360
SEEDS_APART = 10_000  # episodes of one evaluation seed have consecutive seeds
WORKERS = len(os.sched_getaffinity(0))


class Played(NamedTuple):
    """Episodes of one member on one task, [B] each: undiscounted return, whether the goal was reached at any step, and
    whether it holds at the last one."""

    member: int
    task: str
    returns: list[float]
    success: list[bool]
    success_at_end: list[bool]


def play(
    act: Callable[[NDArray[np.float32]], NDArray[np.float32]], benchmark: Benchmark, task: str, episodes: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns, success at any step, success at the end, [B] each, of episodes side by side. `act`: observations [B, S]
    -> actions [B, A]. An episode ends where it terminates, at the horizon, or where the task's own end is reached."""
    goal = benchmark.tasks[benchmark.task_index(task)]
    envs = [benchmark.make_env() for _ in range(episodes)]
    observation = np.stack([env.reset(task, seed * SEEDS_APART + number) for number, env in enumerate(envs)])
    returns, running = np.zeros(episodes), np.ones(episodes, np.bool_)
    ever, last = np.zeros(episodes, np.bool_), np.zeros(episodes, np.bool_)
    while running.any():
        action = act(observation)
        for k in np.flatnonzero(running):
            step = envs[k].step(action[k])
            returns[k] += goal.reward(step.quantities, action[k])
            if goal.success is not None:
                last[k] = goal.success(step.quantities)
                ever[k] |= last[k]
            ends = step.terminated or step.truncated or goal.ends(step.quantities)
            observation[k], running[k] = step.observation, not ends
    for env in envs:
        env.close()
    return returns, ever, last


class Player:
    """Worker that holds the policies. Called with (member, task), it plays that member's episodes."""

    def __init__(self, source: CheckpointFile, episodes: int, seed: int) -> None:
        torch.set_num_threads(1)  # the workers share the cores
        self._file = load_policies(source)
        self._episodes, self._seed = episodes, seed

    def __call__(self, job: tuple[int, str]) -> Played:
        member, task = job
        policy = self._file.member(member).policy
        index = np.full((1, self._episodes), self._file.benchmark.task_index(task))
        found = play(
            lambda observation: policy.act(observation[None], index)[0],
            self._file.benchmark,
            task,
            self._episodes,
            self._seed,
        )
        return Played(member, task, *(column.tolist() for column in found))


@dataclass(frozen=True, kw_only=True)
class Results:
    """`members`: a row of plain values for each member, in the order of the policy file. `header`: what results must
    agree in to be compared, and more: benchmark, metric, and the metadata of the policies."""

    header: dict[str, Any]
    members: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return {**self.header, "members": self.members}

    def table(self) -> str:
        """A line for each member: by task, mean return, or success with its interval."""
        lines = []
        for row in self.members:
            if self.header["metric"] == "success":
                cells = [f"{task} {_rate(successes)}" for task, successes in row["success"].items()]
            else:
                cells = [f"{task} {np.mean(values):.1f}" for task, values in row["returns"].items()]
            name = "" if list(row["returns"]) == [row["name"]] else f"{row['name']}: "  # a member for each task
            lines.append(f"{name}{', '.join(cells)}")
        return "\n".join(lines)


def _rate(successes: Sequence[bool]) -> str:
    low, high = wilson(sum(successes), len(successes))
    return f"{np.mean(successes):.0%} ({low:.0%}-{high:.0%})"


class BehaviourPlayer:
    """Worker that plays a behaviour policy on a task, given as (0, task)."""

    def __init__(self, behaviour: Behaviour, episodes: int, seed: int) -> None:
        self._behaviour, self._episodes, self._seed = behaviour, episodes, seed

    def __call__(self, job: tuple[int, str]) -> Played:
        member, task = job
        benchmark, noise = benchmark_by_name(self._behaviour.benchmark), self._behaviour.noise
        act = load_behaviour(dataclasses.replace(self._behaviour, task=task))[0]
        rng = np.random.default_rng(derive_seed(self._seed, benchmark.task_index(task)))
        found = play(lambda seen: noisy(act(seen, rng), noise, rng), benchmark, task, self._episodes, self._seed)
        return Played(member, task, *(column.tolist() for column in found))


def evaluate(
    file: PolicyFile, episodes: int, seed: int = EVALUATION_SEED, workers: int = WORKERS, label: str = "evaluate"
) -> Results:
    """Play every member on the tasks it was trained for; MissingSimulatorError where that cannot be. `label`: of the
    progress bar."""
    jobs = [(number, task) for number, member in enumerate(file.members) for task in member.tasks]
    player = functools.partial(Player, CheckpointFile(Path("policies"), pack_policies(file)), episodes, seed)
    rows = _play(file.benchmark, player, file.members, jobs, workers, label)
    header = {"benchmark": file.benchmark.name, "metric": file.benchmark.metric}
    return Results(header={**file.metadata, **header, "episodes": episodes, "evaluation_seed": seed}, members=rows)


def evaluate_behaviour(
    behaviour: Behaviour,
    episodes: int,
    seed: int = EVALUATION_SEED,
    workers: int = WORKERS,
    tasks: tuple[str, ...] = (),
) -> Results:
    """Play a behaviour policy on these tasks (default: all), from the first states that evaluation has; errors as
    `load_behaviour`'s."""
    benchmark = benchmark_by_name(behaviour.benchmark)
    _, metadata = load_behaviour(behaviour)
    member = Member(name=Path(behaviour.file).stem, tasks=tasks or benchmark.task_names)
    jobs = [(0, task) for task in member.tasks]
    player = functools.partial(BehaviourPlayer, behaviour, episodes, seed)
    rows = _play(benchmark, player, (member,), jobs, workers, "evaluate")
    header = {"benchmark": benchmark.name, "metric": benchmark.metric, "noise": behaviour.noise}
    return Results(header={**metadata, **header, "episodes": episodes, "evaluation_seed": seed}, members=rows)


def _play(
    benchmark: Benchmark,
    make_player: Callable[[], Callable[[tuple[int, str]], Played]],
    members: Sequence[Member],
    jobs: list[tuple[int, str]],
    workers: int,
    label: str,
) -> list[dict[str, Any]]:
    """The rows of results of all members."""
    benchmark.make_env().close()  # one line here, if its simulator is missing, and not one of each worker
    rows: list[dict[str, Any]] = [
        {"name": member.name, "rule": member.rule, "seed": member.seed, "returns": {}} for member in members
    ]
    if benchmark.metric == "success":
        for row in rows:
            row |= {"success": {}, "success_at_end": {}}
    threads = torch.get_num_threads()
    played = run_jobs_here(make_player, (), jobs, workers)
    for each in tqdm(played, label, total=len(jobs), unit="task"):
        for name in ("returns", "success", "success_at_end"):
            if name in rows[each.member]:
                rows[each.member][name][each.task] = getattr(each, name)
    torch.set_num_threads(threads)
    for row, member in zip(rows, members, strict=True):  # tasks in order, whoever was fastest
        for name in ("returns", "success", "success_at_end"):
            if name in row:
                row[name] = {task: row[name][task] for task in member.tasks}
    return rows


def _frames(behaviour: Behaviour, tasks: tuple[str, ...], seed: int) -> list[Any]:
    """The first episode of each task."""
    benchmark = benchmark_by_name(behaviour.benchmark)
    rng, found = np.random.default_rng(seed), []
    for task in tasks:
        act = load_behaviour(dataclasses.replace(behaviour, task=task))[0]

        def act_alone(seen: NDArray[np.float32], act: Act = act) -> NDArray[np.float32]:
            return noisy(act(seen[None], rng), behaviour.noise, rng)[0]

        found += film_episode(benchmark, task, act_alone, seed * SEEDS_APART, FILM_PX)
    return found


@dataclass(frozen=True, kw_only=True)
class PlayConfig:
    """Every option of `python -m eval.returns`."""

    policy: str = field(metadata={"help": f"file of policies: policy.pt of a run, models/trained; or {CONTROLLER}"})
    benchmark: str = option("", "of the controller, alone or before a file's policies; refused where those are others")
    noise: float = option(0.0, "standard deviation of what is added to a behaviour policy's actions")
    episodes: int = option(10, "of each member and task")
    seed: int = option(EVALUATION_SEED, "of the episodes")
    workers: int = option(WORKERS, "processes")
    out: str = option("", "file of the results; default: POLICY-played.json in its run, else in runs/")
    member: str = option(
        "", "of the file to play alone, RULE-SEED in a run; a film needs one where several know a task"
    )
    film: str = option("", f"play an episode of each task into this file instead, of {', '.join(FORMATS)}")

    def __post_init__(self) -> None:
        check_seed(self, "seed")
        check_least(self, 1, "episodes", "workers")
        check_least(self, 0, "noise")
        if self.policy == CONTROLLER and not self.benchmark:
            raise ValueError("which controller? give its --benchmark")
        if self.policy == CONTROLLER and self.member:
            raise ValueError("member: a controller has none")
        if self.film:
            check_choice("file format", Path(self.film).suffix.lower(), FORMATS)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.returns", description=__doc__)
    add_options(parser, PlayConfig)
    options = vars(parser.parse_args(arguments))
    return run_command(lambda: _main(from_options(PlayConfig, options)))


def _main(config: PlayConfig) -> None:
    path = Path(config.policy)
    file = None if config.policy == CONTROLLER else load_policies(path)
    if file is not None and config.member:
        file = file.named(config.member)
    wanted = benchmark_by_name(config.benchmark) if file is None or config.benchmark else file.benchmark
    own = file is not None and file.benchmark is wanted
    tasks = file.tasks if file is not None and own else wanted.task_names
    if config.film:
        check_writable(film := Path(config.film))
        behaviour = behaviour_of(wanted, config.policy, config.noise, config.member)
        write_film(film, _frames(behaviour, tasks, config.seed), FILM_PAUSE_MS)
        print(film)
        return
    in_run = (path.parent / RUN_CONFIG).is_file()  # results of policies outside a run go to runs/
    name = f"{path.stem}-played.json" if own else f"{path.stem}-{wanted.name}-played.json"
    out = Path(config.out) if config.out else (path.parent if in_run else Path("runs")) / name
    check_writable(out)
    if file is not None and own and not config.noise:
        results = evaluate(file, config.episodes, config.seed, config.workers)
    else:
        behaviour = behaviour_of(wanted, config.policy, config.noise, config.member)
        results = evaluate_behaviour(behaviour, config.episodes, config.seed, config.workers, tasks)
    print(results.table())
    write_atomic(out, json.dumps(results.to_json(), indent=1).encode())
    print(f"{out}: {config.episodes} episode(s) of each member and task of {wanted.name}")


if __name__ == "__main__":
    sys.exit(main())
