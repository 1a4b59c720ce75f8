"""Policies for states at work: their returns over whole episodes, by their mean actions, and as they behave while they
learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.checkpoint import CheckpointError
from models.stacked import TanhGaussian
from models.state_policy import load_policies, mean_actions, sample_actions
from sim.locomotion import HORIZON, Body, Walk


def behaviour(
    file: Path, task: str, seed: list[int]
) -> tuple[Callable[[NDArray[np.float32]], NDArray[np.float32]], dict[str, Any]]:
    """The task's policy in a file of policies, as it acts while it learns: observation [S] -> action [A], drawn; and
    what the file tells of it."""
    policies, _, about = load_policies(file)
    if task not in about["tasks"]:
        raise CheckpointError(f"{file}: holds policies for {', '.join(about['tasks'])}, none for {task}")
    torch.set_num_threads(1)  # of one state at a time, more would wait for each other
    member, count = about["tasks"].index(task), len(about["tasks"])
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))

    def act(observation: NDArray[np.float32]) -> NDArray[np.float32]:
        seen = np.broadcast_to(observation, (count, 1, len(observation))).copy()
        return sample_actions(policies, seen, generator)[member, 0]

    return act, {"algorithm": about["algorithm"], "policy_steps": about["steps"]}


def task_returns(
    policy: TanhGaussian, members: int, body: Body, tasks: tuple[str, ...], episodes: int, seed: int, told: bool = True
) -> NDArray[np.float64]:
    """Undiscounted returns [E, tasks, episodes] of policies that are `told` the task, by a one-hot vector after the
    state. An episode's first state depends on (seed, its number) alone."""
    walks = [[[Walk(body) for _ in range(episodes)] for _ in tasks] for _ in range(members)]
    shape = (members, len(tasks), episodes)
    state = np.zeros((*shape, body.observation_size), np.float32)
    for place in np.ndindex(shape):
        member, task, episode = place
        state[place] = walks[member][task][episode].reset(seed * 10_000 + episode)
    one_hot = np.eye(len(body.tasks), dtype=np.float32)[[body.task_names.index(name) for name in tasks]]
    one_hot = np.broadcast_to(one_hot[None, :, None], (*shape, len(body.tasks)))
    total, going = np.zeros(shape), np.ones(shape, np.bool_)
    for _ in range(HORIZON):
        seen = np.concatenate([state, one_hot], axis=-1) if told else state
        seen = seen.reshape(members, len(tasks) * episodes, -1)
        action = mean_actions(policy, seen).reshape(*shape, -1)
        for place in zip(*np.nonzero(going), strict=True):
            member, task, episode = place
            step = walks[member][task][episode].step(action[place])
            total[place] += body.tasks[tasks[task]](step.motion)
            state[place], going[place] = step.observation, not step.ended
        if not going.any():
            break
    return total
