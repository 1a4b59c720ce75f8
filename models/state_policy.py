"""Files of policies for states: one for each of some tasks, side by side in one network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.checkpoint import CheckpointError, Source, load_finite, read_plain, to_bytes
from models.stacked import TanhGaussian
from sim.locomotion import BODIES, Body

FORMAT = 1


def pack_policies(policy: TanhGaussian, body: Body, tasks: tuple[str, ...], about: dict[str, Any]) -> bytes:
    """The content of a file that `load_policies` reads, of a member for each of the tasks; `about` tells the `hidden`
    units of the layers."""
    told = {"format": FORMAT, "body": body.name, "tasks": list(tasks), **about}
    return to_bytes({"switchyard_policies": told, "state_dict": policy.state_dict()})


def load_policies(path: Source) -> tuple[TanhGaussian, Body, dict[str, Any]]:
    """The policies, their body, and what the file tells of them, as their `tasks`; CheckpointError for any other
    file."""
    found = read_plain(path)
    about = found.get("switchyard_policies") if isinstance(found, dict) else None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise CheckpointError(f"{path}: holds no policies for states of format {FORMAT}")
    body = BODIES.get(about["body"])
    if body is None or not set(about["tasks"]) <= set(body.task_names):
        raise CheckpointError(f"{path}: made for {about['body']} with tasks {about['tasks']}, which this version lacks")
    policy = TanhGaussian(len(about["tasks"]), body.observation_size, tuple(about["hidden"]), body.action_size)
    load_finite(policy, found["state_dict"], path)
    return policy.requires_grad_(False), body, about


@torch.no_grad()
def sample_actions(
    policy: TanhGaussian, observation: NDArray[np.float32], generator: torch.Generator
) -> NDArray[np.float32]:
    """Actions [E, B, A] drawn from the policies at observations [E, B, S]."""
    return policy.sample(torch.from_numpy(observation), 1, generator)[0][:, :, 0].numpy()


@torch.no_grad()
def mean_actions(policy: TanhGaussian, observation: NDArray[np.float32]) -> NDArray[np.float32]:
    """The policies' likeliest actions before the tanh, [E, B, A], as evaluation takes them."""
    return policy(torch.from_numpy(observation))[0].tanh().numpy()
