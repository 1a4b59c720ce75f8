"""Divergence of a policy from effective data: KL(pi || pi_beta_eff) of CDS (sec. 4, tables 1 and 2).

pi_beta_eff is the behaviour policy of the relabelled, weighted dataset of a rule. In the paper pi is the single-task
policy, learned without sharing (rule none), for every rule: only the data differ.

Shapes: `E` members, `N` tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.transitions import TransitionDataset
from models.distributions import Gaussian, gaussian_kl
from models.policy_files import load_policies
from models.reductions import weighted_mean
from models.stacked import initialise_weights
from models.state_policies import DeterministicPolicy, StatePolicy, TanhGaussianPolicy
from models.updates import gradient_step
from train.finite import FiniteCheck
from train.seeding import MemberStream
from train.state_algorithm import StateAlgorithm
from train.state_config import StateConfig

LR = 1e-3  # of Adam; falls linearly to 0
STATES = 2000  # of each task, at which policies are compared


@dataclass(frozen=True)
class SingleTaskPolicy:
    """Policies learned without sharing. `members`: for each member of a run, the one of `policy` with its seed."""

    policy: StatePolicy
    members: list[int]


def load_single_task(config: StateConfig, dataset: TransitionDataset, tasks: Sequence[str]) -> SingleTaskPolicy | None:
    """The policies of rule none in the file `divergence_from`, None without that option. ValueError where they are not
    those of the run's benchmark, data, tasks and seeds."""
    if not config.divergence_from:
        return None
    file, where = load_policies(config.divergence_from), f"divergence_from: {config.divergence_from}"
    if isinstance(file.policy.network, DeterministicPolicy):
        raise ValueError(f"{where} holds deterministic policies, of which there is no KL")
    if file.benchmark is not dataset.benchmark:
        raise ValueError(f"{where} holds policies for {file.benchmark.name}, not for {dataset.benchmark.name}")
    if file.metadata.get("dataset_digest") != dataset.digest:
        raise ValueError(f"{where} learned from other data than {config.data}")
    of_seed = {member.seed: k for k, member in enumerate(file.members) if member.rule == "none"}
    if missing := [str(seed) for seed in config.seeds if seed not in of_seed]:
        raise ValueError(f"{where} has no policy of rule none, seed {', '.join(missing)}; train those seeds there")
    learned = file.members[of_seed[config.seeds[0]]].tasks
    if set(learned) != set(tasks):
        raise ValueError(f"{where} learned {', '.join(learned)}, this run learns {', '.join(tasks)}")
    return SingleTaskPolicy(file.policy, [of_seed[seed] for _, seed in config.members])


def single_task_of(config: StateConfig, policy: StatePolicy) -> SingleTaskPolicy | None:
    """The policies of rule none among the run's own `policy`, None where it has none, or deterministic ones."""
    if "none" not in config.rules or isinstance(policy.network, DeterministicPolicy):
        return None
    return SingleTaskPolicy(policy, [config.members.index(("none", seed)) for _, seed in config.members])


def fit_behaviour(algorithm: StateAlgorithm, steps: int) -> StatePolicy:
    """pi_beta_eff of each member: the maximum-likelihood policy of its batches, weighed by its Q-function as it is and
    by its router, whose statistics go on."""
    config, shared, learned = algorithm.config, algorithm.shared, algorithm.policies()
    device = next(learned.network.parameters()).device
    sizes = shared.members, learned.conditioner.size, config.hidden_sizes
    first = config.random("cpu", MemberStream.BEHAVIOUR_FIRST_WEIGHTS)
    network = TanhGaussianPolicy(*sizes, learned.network.action_size)
    network = initialise_weights(network, shared.members, first.uniform).to(device)
    adam = torch.optim.Adam(network.parameters(), lr=LR, fused=True)
    finite = FiniteCheck("members", config.member_names, steps)
    random = config.random(device)
    shared.begin(algorithm.updates)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = LR * (1 - step / steps)
        random.begin(MemberStream.BEHAVIOUR_UPDATE, step)
        batch, weight = shared.sample_weighted(algorithm.score, random)
        with torch.no_grad():
            state = learned.conditioner(batch.observation, batch.task_index)
        losses = -weighted_mean(network.log_prob(state, batch.action), weight)
        finite.add(step + 1, {"cloning loss": losses})
        gradient_step(adam, losses.sum())
    finite.check()
    return StatePolicy(learned.normaliser, learned.conditioner, network.requires_grad_(False))


def divergences(
    learned: StatePolicy,
    single_task: SingleTaskPolicy | None,
    behaviour: StatePolicy,
    dataset: TransitionDataset,
    tasks: tuple[int, ...],
) -> list[dict[str, dict[str, float] | None]]:
    """Rows of returns.json, by task: `divergence`, KL(pi_none || pi_beta_eff) of tables 1 and 2, None without a
    single-task policy; `own_divergence`, KL(pi || pi_beta_eff) of the member's own policy, None where it is
    deterministic."""
    names = [dataset.benchmark.task_names[task] for task in tasks]

    def by_task(values: Tensor) -> list[dict[str, float] | None]:
        return [dict(zip(names, row, strict=True)) for row in values.tolist()]

    own: list[dict[str, float] | None] = [None] * learned.network.members
    papers = own
    if not isinstance(learned.network, DeterministicPolicy):
        own = by_task(divergence(learned, behaviour, dataset, tasks))
    if single_task is not None:
        policy = single_task.policy.to(next(behaviour.network.parameters()).device)
        papers = by_task(divergence(policy, behaviour, dataset, tasks, single_task.members))
    return [{"divergence": a, "own_divergence": b} for a, b in zip(papers, own, strict=True)]


@torch.no_grad()
def divergence(
    policy: StatePolicy,
    other: StatePolicy,
    dataset: TransitionDataset,
    tasks: tuple[int, ...],
    members: Sequence[int] | None = None,
) -> Tensor:
    """Mean KL(policy || other) of each member of `other` over own states of each task, [E, tasks]. `members`: the one
    of `policy` that each is compared with; default: the same."""
    rng, found = np.random.default_rng(0), []
    device = next(other.network.parameters()).device
    compared = list(range(other.network.members) if members is None else members)
    for task in tasks:
        own = np.flatnonzero(dataset.columns["task"] == task)
        chosen = rng.choice(own, min(STATES, len(own)), replace=False)
        observation = torch.from_numpy(dataset.columns["observation"][chosen]).to(device)
        mean, std = _gaussian(policy, observation, task)
        found.append(gaussian_kl((mean[compared], std[compared]), _gaussian(other, observation, task)).mean(1))
    return torch.stack(found, 1)


def _gaussian(policy: StatePolicy, observation: Tensor, task: int) -> Gaussian:
    """Mean and standard deviation of each member at observations [B, S], [E, B, A] each."""
    observation = observation.expand(policy.network.members, -1, -1)
    return policy(observation, torch.full(observation.shape[:2], task, device=observation.device))
