"""How far learned policies are from the data that a sharing rule left them with: D_KL(pi, pi_beta_eff) of CDS (sec. 4,
tables 1 and 2), pi_beta_eff being the behaviour policy of the effective dataset.

Shapes: `E` members, `N` tasks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.reductions import weighted_mean
from models.stacked import TanhGaussian, gaussian_kl
from train.cql import CQL
from train.finite import FiniteCheck
from train.seeding import derive_seed

RATE = 1e-3  # of Adam
STATES = 2000  # of each task, at which policies are compared


def clone_effective(module: CQL, steps: int) -> TanhGaussian:
    """pi_beta_eff of each member: the likeliest policy for the batches of the training, by the weights that its Q and
    its router give now."""
    torch.manual_seed(derive_seed(module.config.seed, steps))
    policy = TanhGaussian(
        len(module.config.members), module.state_size, module.config.hidden, module.transitions.body.action_size
    ).to(module.device)
    adam = torch.optim.Adam(policy.parameters(), lr=RATE, fused=True)
    finite = FiniteCheck("members", module.config.member_names, steps)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        generator = torch.Generator(module.device).manual_seed(derive_seed(module.config.seed, step, 1))
        batch = module.draw(generator)
        weight = module.weigh(batch, generator)
        density = policy.log_density(module.told(batch.observation, batch.task_index), batch.action)
        losses = -weighted_mean(density, weight)
        finite.add(step + 1, {"cloning loss": losses})
        adam.zero_grad()
        losses.sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
    finite.check()
    return policy.requires_grad_(False)


@torch.no_grad()
def divergence(module: CQL, policy: TanhGaussian, other: TanhGaussian) -> Tensor:
    """Mean KL(policy || other) of each member over own states of each trained task, [E, tasks]."""
    columns, rng = module.transitions.columns, np.random.default_rng(0)
    found = []
    for task in module.tasks:
        own = np.flatnonzero(columns["task"] == task)
        chosen = rng.choice(own, min(STATES, len(own)), replace=False)
        state = torch.from_numpy(columns["observation"][chosen]).to(module.device)
        state = state.expand(len(module.config.members), -1, -1)
        told = module.told(state, torch.full(state.shape[:2], task, device=module.device))
        found.append(gaussian_kl(policy(told), other(told)).mean(1))
    return torch.stack(found, 1)
