"""`python -m eval.returns --policy runs/walker2d/policy.pt`: play a file of state policies, in worker processes.

Deterministic actions; the first state of an episode depends on (seed, its number) alone. The benchmark's metric decides
what is reported: undiscounted returns, or success rates with Wilson intervals.

Shapes: `E` members, `B` episodes played side by side, `S` observation and `A` action dimensions.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from data.seeding import derive_seed
from eval.intervals import wilson
from models.checkpoint import RUN_CONFIG, CheckpointError, CheckpointFile
from models.policy_files import PolicyFile, load_policies, pack_policies
from sim.benchmarks.spec import Benchmark
from sim.benchmarks.table import benchmark_by_name
from sim.files import check_writable, write_atomic
from sim.options import Parser, check_is_seed, run_command
from sim.parallel import run_jobs

EVALUATION_SEED = 1  # of the episodes that every member of every run plays
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
    observation = np.stack([env.reset(task, seed * 10_000 + number) for number, env in enumerate(envs)])
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


def evaluate(
    file: PolicyFile, episodes: int, seed: int = EVALUATION_SEED, workers: int = WORKERS, label: str = "evaluate"
) -> Results:
    """Play every member on the tasks it was trained for; MissingSimulatorError where that cannot be. `label`: of the
    progress bar."""
    benchmark = file.benchmark
    benchmark.make_env().close()  # one line here, if its simulator is missing, and not one of each worker
    jobs = [(number, task) for number, member in enumerate(file.members) for task in member.tasks]
    arguments = (CheckpointFile(Path("policies"), pack_policies(file)), episodes, seed)
    rows: list[dict[str, Any]] = [
        {"name": member.name, "rule": member.rule, "seed": member.seed, "returns": {}} for member in file.members
    ]
    if benchmark.metric == "success":
        for row in rows:
            row |= {"success": {}, "success_at_end": {}}
    threads = torch.get_num_threads()
    played = map(Player(*arguments), jobs) if workers == 1 else run_jobs(Player, arguments, jobs, workers)
    for each in tqdm(played, label, total=len(jobs), unit="task"):
        for name in ("returns", "success", "success_at_end"):
            if name in rows[each.member]:
                rows[each.member][name][each.task] = getattr(each, name)
    torch.set_num_threads(threads)
    for row, member in zip(rows, file.members, strict=True):  # tasks in order, whoever was fastest
        for name in ("returns", "success", "success_at_end"):
            if name in row:
                row[name] = {task: row[name][task] for task in member.tasks}
    header = {"benchmark": benchmark.name, "metric": benchmark.metric, "episodes": episodes, "evaluation_seed": seed}
    return Results(header={**file.metadata, **header}, members=rows)


def exploring(
    file: Path, benchmark: Benchmark, task: str, seed: list[int]
) -> tuple[Callable[[NDArray[np.float32]], NDArray[np.float32]], dict[str, Any]]:
    """The policy of a task in a file, for collection: observation [S] -> sampled action [A]; and its metadata."""
    found = load_policies(file)
    if found.benchmark is not benchmark:
        raise CheckpointError(f"{file}: holds policies for {found.benchmark.name}, not for {benchmark.name}")
    member = next((k for k, member in enumerate(found.members) if task in member.tasks), None)
    if member is None:
        raise CheckpointError(f"{file}: holds policies for {', '.join(found.tasks)}, none for {task}")
    torch.set_num_threads(1)  # for one state at a time, more would wait for each other
    count, index = len(found.members), found.benchmark.task_index(task)
    generator = torch.Generator().manual_seed(derive_seed(*seed))

    def act(observation: NDArray[np.float32]) -> NDArray[np.float32]:
        seen = np.broadcast_to(observation, (count, 1, len(observation))).copy()
        return found.policy.explore(seen, np.full((count, 1), index), generator)[member, 0]

    steps = found.metadata.get("steps", found.metadata.get("updates"))
    return act, {"algorithm": found.metadata["algorithm"], "policy_steps": steps}


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.returns", description=__doc__)
    parser.add_argument(
        "--policy", type=Path, required=True, help="file of policies: policy.pt of a run, models/trained"
    )
    parser.add_argument("--benchmark", help="refuse policies of another one (default: the policies' own)")
    parser.add_argument("--episodes", type=int, default=10, help="of each member and task (default 10)")
    parser.add_argument(
        "--seed", type=int, default=EVALUATION_SEED, help=f"of the episodes (default {EVALUATION_SEED})"
    )
    parser.add_argument("--workers", type=int, default=WORKERS, help=f"processes (default {WORKERS})")
    parser.add_argument(
        "--out", type=Path, help="file of the results (default: POLICY-played.json in its run, else in runs/)"
    )
    options = parser.parse_args(arguments)
    return run_command(lambda: _main(**vars(options)))


def _main(policy: Path, benchmark: str | None, episodes: int, seed: int, workers: int, out: Path | None) -> None:
    check_is_seed("seed", seed)
    if episodes < 1 or workers < 1:
        raise ValueError(f"episodes and workers are at least 1, got {episodes} and {workers}")
    file = load_policies(policy)
    if benchmark and file.benchmark is not benchmark_by_name(benchmark):
        raise ValueError(f"{policy}: holds policies for {file.benchmark.name}, not for {benchmark}")
    in_run = (policy.parent / RUN_CONFIG).is_file()  # results of policies outside a run go to runs/
    out = out or (policy.parent if in_run else Path("runs")) / f"{policy.stem}-played.json"
    check_writable(out)
    results = evaluate(file, episodes, seed, workers)
    print(results.table())
    write_atomic(out, json.dumps(results.to_json(), indent=1).encode())
    print(f"{out}: {episodes} episode(s) of each member and task of {file.benchmark.name}")


if __name__ == "__main__":
    sys.exit(main())
