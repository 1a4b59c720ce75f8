"""Behaviour policies of the state benchmarks, for collection and to be played beside what was learned from them: the
policies of a file, or a benchmark's controller, alone or before the policies of another benchmark, which follow it.
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.mixtures import CONTROLLER
from data.state_collection import Act, Behaviour
from models.checkpoint import CheckpointError, CheckpointFile
from models.policy_files import PolicyFile, load_policies, pack_policies
from sim.benchmarks.spec import Benchmark
from sim.benchmarks.table import benchmark_by_name


def behaviour_of(benchmark: Benchmark, file: str, noise: float, member: str = "") -> Behaviour:
    """A file's policies, or its `member` alone, or the `controller`, on the benchmark's first task."""
    content = None if file == CONTROLLER else CheckpointFile.of(file).content
    if content is not None and member:
        content = pack_policies(load_policies(CheckpointFile(Path(file), content)).named(member))
    task = benchmark.task_names[0]
    return Behaviour(benchmark=benchmark.name, task=task, file=file, content=content, noise=noise)


def load_behaviour(behaviour: Behaviour) -> tuple[Act, dict[str, Any]]:
    """How the behaviour acts on its task, without its noise, and the metadata of its file. CheckpointError for policies
    of another benchmark or of other tasks, and where several of a file were trained for the task."""
    benchmark, task = benchmark_by_name(behaviour.benchmark), behaviour.task
    controller = benchmark.controller
    if behaviour.content is None:
        if controller is None or controller.follower:
            needs = f"commands policies of {controller.follower}" if controller else "is not there"
            raise CheckpointError(f"{benchmark.name}: its controller {needs}; give a file of policies")
        return lambda observation, _: controller.command(task, observation), {}
    found = load_policies(CheckpointFile(Path(behaviour.file), behaviour.content))
    steps = found.metadata.get("steps", found.metadata.get("updates"))
    metadata = {"algorithm": found.metadata["algorithm"], "policy_steps": steps}
    if found.benchmark is benchmark:
        return _act_of(found, behaviour, task), metadata
    if controller is None or controller.follower != found.benchmark.name:
        raise CheckpointError(f"{behaviour.file}: holds policies for {found.benchmark.name}, not for {benchmark.name}")
    follow = _act_of(found, behaviour, found.benchmark.task_names[0])
    return lambda observation, rng: follow(controller.command(task, observation), rng), metadata


def _act_of(found: PolicyFile, behaviour: Behaviour, task: str) -> Act:
    members = [k for k, member in enumerate(found.members) if task in member.tasks]
    if not members:
        raise CheckpointError(f"{behaviour.file}: holds policies for {', '.join(found.tasks)}, none for {task}")
    if len(members) > 1:
        names = ", ".join(found.members[k].name for k in members)
        raise CheckpointError(
            f"{behaviour.file}: holds {len(members)} policies for {task} ({names}), of which to play one"
        )
    policy, index = found.member(members[0]).policy, found.benchmark.task_index(task)
    generator = torch.Generator()
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # the workers share the cores

    def act(observation: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        tasks = np.full((1, len(observation)), index)
        if not behaviour.sampled:
            return policy.act(observation[None], tasks)[0]
        generator.manual_seed(int(rng.integers(2**63)))
        return policy.explore(observation[None], tasks, generator)[0]

    return act
