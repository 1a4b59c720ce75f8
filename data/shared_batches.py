"""Shared batches of states: relabelled, weighted transitions for several members, each a sharing rule and a seed.

An offline algorithm holds one `SharedBatches`.

Shapes: `E` members, `B` transitions of all target tasks, `N` tasks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.member_random import MemberRandom
from data.router import Router, RouterConfig
from data.scoring import Scorer, scores_for
from data.sharing import RULES
from data.state_batches import StateBatch, StateSampler, TransitionTensors
from data.transitions import TransitionDataset
from sim.options import check_choice

SAMPLING, ROUTING, RESAMPLING = 1, 2, 3  # purposes of the numbers that a rule draws in an update


@dataclass(frozen=True, kw_only=True)
class SharingConfig:
    """Options of data sharing. `routers`: one for each rule, each with a member per seed, in the order of the members.
    `tasks`: names of the tasks to train; empty: those the dataset has transitions of. `snapshot_every`: updates between
    snapshots of the Q-function, for rules that share by one."""

    routers: tuple[RouterConfig, ...]
    seeds: int
    tasks: tuple[str, ...] = ()
    per_task: int = 128
    shared_fraction: float = 0.5
    candidates_per_shared: int = 1
    snapshot_every: int = 10_000


class MemberRouter(Router):
    """A router whose members draw numbers of their own: `weigh` takes a MemberRandom for its generator."""

    def _own_too(self, target: Tensor, generator: Any) -> Tensor:
        drawn: Tensor = generator.uniform(self.tau.shape[-1]) < self.config.weigh_own_probability
        return drawn.gather(-1, target)


class SharedBatches(nn.Module):
    """Samplers and routers of all members. The routers' running statistics are buffers, saved with the checkpoint."""

    def __init__(self, dataset: TransitionDataset, config: SharingConfig, q_function: nn.Module | None = None) -> None:
        """`q_function`: the one that snapshots are copied from; without it no rule may need Q-values (ValueError).
        ValueError with the nearest name for a task that does not exist."""
        super().__init__()
        benchmark = dataset.benchmark
        self.config, self._dataset, self.task_names = config, dataset, benchmark.task_names
        for name in config.tasks:
            check_choice("task", name, benchmark.task_names)
        present = np.unique(dataset.columns["task"]).tolist()
        self.tasks = tuple(
            k for k, name in enumerate(benchmark.task_names) if (name in config.tasks if config.tasks else k in present)
        )
        self.rules = [RULES[router.rule] for router in config.routers]
        if q_function is None and (asking := [rule.name for rule in self.rules if rule.uses_q]):
            raise ValueError(f"rule {asking[0]} weighs by Q-values, and this algorithm learns none")
        episodes = int(dataset.episode[-1]) + 1
        self.routers = nn.ModuleList(
            MemberRouter(router, len(benchmark.tasks), config.seeds, episodes) for router in config.routers
        )
        by_snapshot = any(rule.snapshot for rule in self.rules)
        self.snapshot = copy.deepcopy(q_function).requires_grad_(False) if by_snapshot and q_function else None
        self._samplers: list[StateSampler] = []

    def start(self, device: torch.device | str) -> None:
        """Move transitions and routers to the device, before the first batch."""
        self.to(device)
        config, skills = self.config, self._dataset.benchmark.skills
        tensors = TransitionTensors(self._dataset, device)
        self._samplers = [
            StateSampler(
                tensors,
                rule.sources(skills),
                self.tasks,
                config.per_task,
                config.shared_fraction,
                rule.reward,
                config.candidates_per_shared,
            )
            for rule in self.rules
        ]

    @property
    def members(self) -> int:
        return len(self.rules) * self.config.seeds

    def sample(self, random: MemberRandom) -> StateBatch:
        """Batches of all members, [E, B, ...]."""
        return StateBatch.concatenate([sampler.sample(random.of_one_rule(SAMPLING)) for sampler in self._samplers])

    def sample_weighted(
        self, score: Callable[[StateBatch, MemberRandom], Scorer | None], updates: int, random: MemberRandom
    ) -> tuple[StateBatch, Tensor]:
        """Batches as a loss gets them, and their weights [E, B], by the scorer that `score` makes of a batch."""
        batch = self.sample(random)
        scorer = score(batch, random)
        if self.config.candidates_per_shared > 1:
            return self.resample(batch, scorer, updates, random)
        return batch, self.weigh(batch, scorer, updates, random)

    @torch.no_grad()
    def weigh(self, batch: StateBatch, scorer: Scorer | None, updates: int, random: MemberRandom) -> Tensor:
        """Weights of a batch, [E, B]. `updates`: done so far; before the first snapshot, rules that share by one share
        nothing."""
        taken = self.snapshot is not None and updates >= self.config.snapshot_every
        scores = scores_for(self.rules, scorer, self.snapshot if taken else None)
        weights = []
        for (router, members), known in zip(self._parts(), scores, strict=True):
            mine = None if known is None else known.of_members(members)
            numbers: Any = random.of_one_rule(ROUTING)
            weights.append(router.weigh(batch.of_members(members), mine, numbers))
        return torch.cat(weights)

    @torch.no_grad()
    def resample(
        self, batch: StateBatch, scorer: Scorer | None, updates: int, random: MemberRandom
    ) -> tuple[StateBatch, Tensor]:
        """Importance resampling: own transitions and one of every `candidates_per_shared` shared ones, drawn by weight;
        and their weights [E, B]."""
        weight = self.weigh(batch, scorer, updates, random)
        resampled = []
        for router, members in self._parts():
            numbers = random.of_one_rule(RESAMPLING)
            for k, generator in zip(range(members.start, members.stop), numbers.generators, strict=True):
                one = slice(k, k + 1)
                candidates = self.config.candidates_per_shared
                resampled.append(router.resample(batch.of_members(one), weight[one], candidates, generator))
        index, weight = (torch.cat(column) for column in zip(*resampled, strict=True))
        return batch.select(index), weight

    def after_update(self, q_function: nn.Module, updates: int) -> None:
        """Take a snapshot of the Q-function, every `snapshot_every` updates."""
        if self.snapshot is not None and updates % self.config.snapshot_every == 0:
            self.snapshot.load_state_dict(q_function.state_dict())
            for router, _ in self._parts():
                if router.rule.snapshot:
                    router.forget()

    def report(self) -> list[dict[str, Any]]:
        """Each member's routing report (data.router.Router.report), with the names of the tasks."""
        seeds, steps = self.config.seeds, self._dataset.steps_by_outcome
        return [
            {**router.report(steps, seed), "tasks": self.task_names}
            for router, _ in self._parts()
            for seed in range(seeds)
        ]

    def _parts(self) -> Iterator[tuple[Router, slice]]:
        """Each rule's router and its members."""
        seeds = self.config.seeds
        for k, router in enumerate(self.routers):
            assert isinstance(router, Router)
            yield router, slice(k * seeds, (k + 1) * seeds)
