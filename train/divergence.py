"""Divergence between learned policies and their effective data: KL(pi || pi_beta_eff) of CDS (sec. 4, tables 1 and 2),
where pi_beta_eff is the behaviour policy of the relabelled, weighted dataset.

Shapes: `E` members, `N` tasks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.transitions import TransitionDataset
from models.distributions import gaussian_kl
from models.reductions import weighted_mean
from models.stacked import draw_weights
from models.state_policies import StatePolicy, TanhGaussianPolicy
from models.updates import gradient_step
from train.finite import FiniteCheck
from train.seeding import MemberStream

LR = 1e-3  # of Adam; falls linearly to 0
STATES = 2000  # of each task, at which policies are compared


def fit_behaviour(algorithm: Any, steps: int) -> StatePolicy:
    """pi_beta_eff of each member: the maximum-likelihood policy of its batches, by the weights that its Q-function and
    router give now. `algorithm`: see train/state_run.py."""
    config, shared, learned = algorithm.config, algorithm.shared, algorithm.policies()
    device = next(learned.network.parameters()).device
    sizes = shared.members, learned.conditioner.size, config.hidden_sizes
    first = config.random("cpu", MemberStream.BEHAVIOUR_FIRST_WEIGHTS)
    network = TanhGaussianPolicy(*sizes, learned.network.action_size)
    network = draw_weights(network, shared.members, first.uniform).to(device)
    adam = torch.optim.Adam(network.parameters(), lr=LR, fused=True)
    finite = FiniteCheck("members", config.member_names, steps)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = LR * (1 - step / steps)
        random = config.random(device, MemberStream.BEHAVIOUR_UPDATE, step)
        batch, weight = shared.sample_weighted(algorithm.score, algorithm.updates, random)
        with torch.no_grad():
            state = learned.conditioner(batch.observation, batch.task_index)
        losses = -weighted_mean(network.log_prob(state, batch.action), weight)
        finite.add(step + 1, {"cloning loss": losses})
        gradient_step(adam, losses.sum())
    finite.check()
    return StatePolicy(learned.normaliser, learned.conditioner, network.requires_grad_(False))


@torch.no_grad()
def divergence(policy: StatePolicy, other: StatePolicy, dataset: TransitionDataset, tasks: tuple[int, ...]) -> Tensor:
    """Mean KL(policy || other) of each member over own states of each task, [E, tasks]."""
    rng, found = np.random.default_rng(0), []
    device = next(policy.network.parameters()).device
    members = policy.network.members
    for task in tasks:
        own = np.flatnonzero(dataset.columns["task"] == task)
        chosen = rng.choice(own, min(STATES, len(own)), replace=False)
        observation = torch.from_numpy(dataset.columns["observation"][chosen]).to(device).expand(members, -1, -1)
        index = torch.full(observation.shape[:2], task, device=device)
        found.append(gaussian_kl(policy(observation, index), other(observation, index)).mean(1))
    return torch.stack(found, 1)
