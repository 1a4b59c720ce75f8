"""Shared batches of states: relabelled, weighted transitions for several members, each a sharing rule and a seed.

An offline algorithm holds one `SharedBatches`.

Shapes: `E` members, `B` transitions of all target tasks, `N` tasks.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.devices import to_device
from data.episode_router import EpisodeRouter
from data.episode_scores import Episodes, EpisodeScores, ScoringSchedule
from data.member_random import MemberRandom
from data.router import Router
from data.router_config import RouterConfig
from data.scoring import Scorer, scores_for
from data.sharing import RULES
from data.sharing_options import SharingOptions
from data.state_batches import StateBatch, StateSampler, TransitionTensors
from data.transitions import TransitionDataset
from sim.options import check_choice

SAMPLING, ROUTING, CHOOSING, SCORING = 1, 2, 3, 4  # purposes of the numbers that a rule draws in an update


class ScoredSteps:
    """The steps that an update scores beside its batch, in memory of their own on the device."""

    def __init__(self, count: int, device: torch.device | str) -> None:
        self._all = torch.zeros(3, count, dtype=torch.int64, device=device)
        self.visit, self.episode, self.step = self._all  # [P] each

    def set(self, schedule: ScoringSchedule, number: int) -> None:
        """Those of batch `number`."""
        episode, step = schedule.steps(number)
        visit = np.full_like(step, schedule.visit_of(number))
        self._all.copy_(to_device(torch.from_numpy(np.stack([visit, episode, step])), self._all.device))


class SharedBatches(nn.Module):
    """Samplers and routers of all members. The routers' running statistics are buffers, saved with the checkpoint."""

    def __init__(
        self, dataset: TransitionDataset, config: SharingOptions, q_function: Callable[[], nn.Module] | None = None
    ) -> None:
        """`q_function` gives the one that snapshots are copied from; without it no rule may need Q-values (ValueError).
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
        self.routers = nn.ModuleList(self._router(router) for router in config.routers)
        self._q_function = q_function
        self.snapshot: nn.Module | None = None
        scored = (router.episodes for router, _ in self._parts() if router.episodes is not None)
        self._schedule = next((episodes.scores.schedule for episodes in scored), None)  # the same for every rule
        self._samplers: list[StateSampler] = []
        self._scored: ScoredSteps | None = None
        self._updates = 0

    def _router(self, config: RouterConfig) -> Router:
        rule, num_tasks, episodes = RULES[config.rule], len(self.task_names), None
        if config.by_episode:
            length = np.bincount(self._dataset.episode)
            task = self._dataset.columns["task"][np.cumsum(length) - 1]
            listed = Episodes(task=task.astype(np.int64), length=length)
            count = max(1, round(self.config.score_fraction * self.config.per_task * len(self.tasks)))
            schedule = ScoringSchedule(listed, count, self.config.score_visits, seed=0)
            sources = rule.other_sources(self._dataset.benchmark.skills, self.tasks)
            scores = EpisodeScores(schedule, len(self.config.seeds), num_tasks, lag=0)
            episodes = EpisodeRouter(config, scores, sources)
        return Router(config, num_tasks, len(self.config.seeds), episodes=episodes)

    def start(self, device: torch.device | str) -> None:
        """Move transitions and routers to the device, before the first batch. The Q-function is there already."""
        self.to(device)
        if self._q_function is not None and any(rule.snapshot for rule in self.rules):
            self.snapshot = copy.deepcopy(self._q_function()).requires_grad_(False)
        config, skills = self.config, self._dataset.benchmark.skills
        tensors = TransitionTensors(self._dataset, device, config.reward_scale, config.reward_shift)
        self._samplers = [
            StateSampler(
                tensors,
                rule.sources(skills),
                self.tasks,
                config.per_task,
                config.shared_fraction,
                rule.reward,
                router.draws_episodes,
                config.candidates_per_shared if self.draws_candidates else 0,
                router.draws_candidates,
            )
            for rule, router in zip(self.rules, config.routers, strict=True)
        ]
        self._task_index = torch.tensor(self.tasks, device=device)
        self._scored = ScoredSteps(self._schedule.per_batch, device) if self._schedule is not None else None

    @property
    def members(self) -> int:
        return len(self.rules) * len(self.config.seeds)

    @property
    def draws_candidates(self) -> bool:
        """Whether `sample` gives candidates, of which `choose` draws those that are learned from."""
        return any(router.draws_candidates for router in self.config.routers)

    # ---------------------------------------------------------------- an update

    def begin(self, updates: int) -> tuple[bool, ...]:
        """Prepare the update after `updates` ones: all that is decided outside of the device. Updates with the same
        answer are the same computation."""
        self._updates = updates
        if self._scored is not None and self._schedule is not None:
            self._scored.set(self._schedule, updates)
        known = [
            router.episodes is not None and router.episodes.held_weights(updates) is not None
            for router, _ in self._parts()
        ]
        return self._taken, *known, *(updates >= router.share_after for router in self.config.routers)

    def sample(self, random: MemberRandom) -> StateBatch:
        """Batches of all members, [E, B, ...]."""
        draws = max(self._samplers, key=lambda sampler: sampler.offers).draw(random.of_one_rule(SAMPLING))
        parts = []
        for sampler, (router, _) in zip(self._samplers, self._parts(), strict=True):
            by_episode = router.episodes is not None and router.config.draws_episodes
            weights = router.episodes.held_weights(self._updates) if router.episodes and by_episode else None
            parts.append(sampler.sample(draws, weights))
        return StateBatch.concatenate(parts)

    def sample_weighted(
        self, score: Callable[[StateBatch, MemberRandom], Scorer | None], random: MemberRandom
    ) -> tuple[StateBatch, Tensor]:
        """Batches as a loss gets them, and their weights [E, B], by the scorer that `score` makes of a batch."""
        batch = self.sample(random)
        if self.draws_candidates:
            return self.choose(batch, score, random)
        scorer = score(batch, random.stream(SCORING)) if any(rule.uses_q for rule in self.rules) else None
        return batch, self.weigh(batch, scorer, random)

    @torch.no_grad()
    def score_episodes(self, score: Callable[[StateBatch, MemberRandom], Scorer | None], random: MemberRandom) -> None:
        """Score the steps whose turn it is for every task, by the scorer that `score` makes of them. Nothing where no
        rule scores episodes."""
        scored = self._scored
        if scored is None:
            return
        batch = self._samplers[0].load(scored.step, self.members)
        own_task = [rule if rule.needs != "q_tasks" else dataclasses.replace(rule, needs=None) for rule in self.rules]
        scores = scores_for(own_task, score(batch, random.stream(SCORING)), self._snapshot())
        for (router, members), known in zip(self._parts(), scores, strict=True):
            if known is None or router.rule.score is None or router.episodes is None:
                continue
            found = router.rule.score(known.of_members(members)).unflatten(1, (len(scored.step), len(self.tasks)))
            every = found.new_full((*found.shape[:2], len(self.task_names)), torch.nan)
            router.episodes.scores.write(scored.visit, scored.episode, every.index_copy(2, self._task_index, found))

    @torch.no_grad()
    def weigh(self, batch: StateBatch, scorer: Scorer | None, random: MemberRandom) -> Tensor:
        """Weights of a batch, [E, B]. Before the first snapshot, rules that share by one share nothing."""
        scores = scores_for(self.rules, scorer, self._snapshot())
        uniform = None
        if any(router.weigh_own_probability for router in self.config.routers):
            uniform = random.of_one_rule(ROUTING).uniform(len(self.task_names))
        weights = []
        for (router, members), known in zip(self._parts(), scores, strict=True):
            mine = None if known is None else known.of_members(members)
            learned = not self.draws_candidates
            weights.append(router.weigh(batch.of_members(members), mine, uniform, self._updates, learned))
        return torch.cat(weights)

    @torch.no_grad()
    def weights_of(
        self,
        rows: Tensor,
        score: Callable[[StateBatch, MemberRandom], Scorer | None],
        random: MemberRandom,
        updates: int,
    ) -> Tensor:
        """Weights that transitions, `rows` [P] of the dataset, have after so many updates for every task if they are
        shared with it: [E, P, N]; 0 for a source that the rule leaves out and for a task that is not trained, NaN where
        a rule cannot tell."""
        self._updates = updates
        batch, skills = self._samplers[0].load(rows, self.members), self._dataset.benchmark.skills
        scores = scores_for(self.rules, score(batch, random.stream(SCORING)), self._snapshot())
        count, found = len(self.tasks), []
        for (router, members), known in zip(self._parts(), scores, strict=True):
            own, mine = batch.of_members(members), None if known is None else known.of_members(members)
            weight = router.weight_as_shared(mine, own.task_index, own.episode, self._updates)
            others = torch.from_numpy(router.rule.other_sources(skills, self.tasks)).to(weight.device)
            allowed = others[own.task_index, own.source_task_index] | (own.task_index == own.source_task_index)
            found.append(torch.where(allowed, weight, 0.0))
        by_task = torch.cat(found).unflatten(1, (len(rows), count))
        return by_task.new_zeros(*by_task.shape[:2], len(self.task_names)).index_copy(2, self._task_index, by_task)

    @torch.no_grad()
    def choose(
        self,
        batch: StateBatch,
        score: Callable[[StateBatch, MemberRandom], Scorer | None],
        random: MemberRandom,
    ) -> tuple[StateBatch, Tensor]:
        """The rows of a batch of candidates that are learned from, and their weights [E, B]."""
        scorer, chosen = score(batch, random.stream(SCORING)), []
        weight = self.weigh(batch, scorer, random)
        per_task, num_shared = self.config.per_task, self.config.num_shared
        uniform = random.of_one_rule(CHOOSING).uniform(len(self.task_names))
        for router, members in self._parts():
            own = batch.of_members(members)
            chosen.append(router.choose(own, weight[members], self._task_index, per_task, num_shared, uniform))
        index, weight = (torch.cat(column) for column in zip(*chosen, strict=True))
        return batch.select(index), weight

    @property
    def _taken(self) -> bool:
        """Whether there is a snapshot of the Q-function."""
        return self.snapshot is not None and self._updates >= self.config.snapshot_every

    def _snapshot(self) -> nn.Module | None:
        return self.snapshot if self._taken else None

    def finish(self) -> None:
        """After the update that was begun: keep scores of episodes that are complete, and take a snapshot of the
        Q-function every `snapshot_every` updates."""
        for router, _ in self._parts():
            if router.episodes is not None and (self._taken or not router.rule.snapshot):
                router.episodes.scores.finish(self._updates)
        if self.snapshot is not None and (self._updates + 1) % self.config.snapshot_every == 0:
            assert self._q_function is not None
            self.snapshot.load_state_dict(self._q_function().state_dict())
            for router, _ in self._parts():
                if router.rule.snapshot:
                    router.forget()

    # ---------------------------------------------------------------- report

    def report(self) -> list[dict[str, Any]]:
        """Each member's routing report (data.router.Router.report), with the names of the tasks."""
        seeds, steps = len(self.config.seeds), self._dataset.steps_by_outcome
        return [
            {**router.report(steps, seed), "tasks": self.task_names}
            for router, _ in self._parts()
            for seed in range(seeds)
        ]

    def _parts(self) -> Iterator[tuple[Router, slice]]:
        """Each rule's router and its members."""
        seeds = len(self.config.seeds)
        for k, router in enumerate(self.routers):
            assert isinstance(router, Router)
            yield router, slice(k * seeds, (k + 1) * seeds)
