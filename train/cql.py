"""Conservative Q-learning with data sharing for states (CQL(H), Kumar et al. 2020, arXiv:2006.04779; CDS, app. C.1), as
one Lightning module that trains several members at once: seeds and sharing rules, as one stacked computation.

Order: update, configuration; losses are in models/state_losses.py. Shapes: `E` members, `B` transitions of all target
tasks, `K` sampled actions, `S` and `A` numbers of a state and an action, `N` tasks. Randomness of a step comes from
(seed, step) alone, so a resumed run repeats it exactly.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.router import Router
from data.sharing import RULES, Scores
from data.transitions import StateBatch, StateSampler, Transitions
from models.checkpoint import CheckpointError, check_finite, load_weights
from models.reductions import weighted_mean
from models.stacked import TanhGaussian, TwinQ, draw, fold_normalisation
from models.state_losses import alpha_loss, conservative_gap, q_target, softmax_sample
from sim.options import check_choice
from train.cql_config import CQLConfig
from train.finite import FiniteCheck, check_weights
from train.seeding import derive_seed

FORMAT = 4  # of `CQL.checkpoint`

# ---------------------------------------------------------------- update


class CQL(lightning.LightningModule):
    """Member e learns by rule e of the configuration, and is one of its seeds: it begins with weights of its own and
    draws batches of its own. `target` is the running average of `q`; `snapshot` is that of a while ago, by which a rule
    that asks for one shares.

    `tasks`: numbers of those that are trained."""

    def __init__(self, config: CQLConfig, transitions: Transitions) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.data_digest = transitions.digest
        size = transitions.body.observation_size
        mean, std = np.zeros(size, np.float32), np.ones(size, np.float32)
        if config.normalise:
            transitions, mean, std = transitions.normalised()
        self.mean, self.std = torch.nn.Buffer(torch.from_numpy(mean)), torch.nn.Buffer(torch.from_numpy(std))
        self.config, self.transitions = config, transitions
        self.num_tasks = len(transitions.body.tasks)
        names = transitions.body.task_names
        for name in config.tasks:
            check_choice("task", name, names)
        present = np.unique(transitions.columns["task"]).tolist()
        self.tasks = tuple(
            k for k, name in enumerate(names) if (name in config.tasks if config.tasks else k in present)
        )
        members, action_size = len(config.members), transitions.body.action_size
        self.state_size = size + self.num_tasks
        self.policy = TanhGaussian(members, self.state_size, config.hidden, action_size)
        self.q = TwinQ(members, self.state_size, action_size, config.hidden)
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        shares_by_old = any(RULES[rule].snapshot for rule in config.rules)
        self.snapshot = copy.deepcopy(self.target) if shares_by_old else None
        self.log_alpha = torch.nn.Parameter(torch.zeros(members))
        seeds = len(config.seeds)
        episodes = int(transitions.episode[-1]) + 1
        self.routers = [Router(config.router(rule), self.num_tasks, seeds, episodes) for rule in config.rules]
        self._routers = torch.nn.ModuleList(self.routers)  # for the checkpoint and the device
        self.samplers: list[StateSampler] = []
        self.updates = 0
        self.finite = FiniteCheck("members", config.member_names, config.log_every)
        self.optimizer_states: list[dict[str, Any]] = []  # to go on from

    def setup(self, stage: str) -> None:
        """The data, normalised where that is asked for, go to the device of the module."""
        config, skills = self.config, self.transitions.body.task_names  # no two locomotion tasks are of one skill
        self.samplers = [
            StateSampler(
                self.transitions,
                RULES[rule].sources(skills),
                self.tasks,
                config.per_task,
                config.shared_part,
                RULES[rule].reward,
                config.oversample,
                self.device,
            )
            for rule in config.rules
        ]

    def training_step(self, batch: Any, number: int) -> None:
        """`updates_per_step` updates, or as many as are left."""
        for _ in range(min(self.config.updates_per_step, self.config.steps - self.updates)):
            info = self.update()
        for k, name in enumerate(self.config.member_names):
            self.log_dict({f"{name}/{key}": value[k] for key, value in info.items()})
        self.log("step", float(self.updates))  # Lightning counts two, one of each optimiser

    def update(self) -> dict[str, Tensor]:
        """One step of everything; values [E] to be logged."""
        config = self.config
        generator = torch.Generator(self.device).manual_seed(derive_seed(config.seed, self.updates))
        batch, weight = self.draw(generator), None
        if config.oversample > 1:
            batch, weight = self._resample(batch, generator)
        state, following = (self.told(x, batch.task_index) for x in (batch.observation, batch.next_observation))
        alpha = self.log_alpha.exp().detach()[:, None]
        distribution = self.policy(state)
        learned, learned_density = draw(distribution, 1, generator)
        with torch.no_grad():
            mine, mine_density = draw(distribution, config.sampled_actions, generator)
            theirs, their_density = self.policy.sample(following, config.sampled_actions, generator)
            next_q = self.target(following, theirs[:, :, :1]).amin(0)[..., 0]
            backup = q_target(batch.reward, batch.done, next_q, torch.zeros_like(next_q), config.discount)
            anywhere = torch.rand(theirs.shape, generator=generator, device=self.device) * 2 - 1
            uniform = torch.full_like(their_density, theirs.shape[-1] * math.log(0.5))
            sampled = torch.cat([anywhere, mine, theirs], 2)
            density = torch.cat([uniform, mine_density, their_density], 2)

        q, q_sampled, gap = self._conservative(state, batch.action, sampled, density, generator)
        if weight is None:
            policy = q_sampled[..., config.sampled_actions : 2 * config.sampled_actions]
            weight = self._route(batch, q.detach(), policy, generator)
        bellman = weighted_mean((q - backup).square(), weight) / 2
        conservative = weighted_mean(gap, weight)
        critic = (bellman + config.conservative_weight * conservative).sum(0)
        self._step(0, critic.sum())

        self.q.requires_grad_(False)
        best = self.q(state, learned).amin(0)[..., 0]
        self.q.requires_grad_(True)
        entropy = alpha * learned_density[..., 0]
        if self.updates < config.warm_steps:
            actor = weighted_mean(entropy - self.policy.log_density(state, batch.action), weight)
        else:
            actor = weighted_mean(entropy - best, weight)
        temperature = alpha_loss(self.log_alpha, learned_density[..., 0], batch.action.shape[-1])
        self._step(1, actor.sum() + temperature)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), list(self.q.parameters()), config.target_rate)
        self.updates += 1
        info = {"bellman": bellman.mean(0), "conservative": conservative.mean(0), "actor": actor}
        info |= {"q_data": q.amin(0).mean(-1), "q_policy": best.mean(-1), "alpha": alpha[:, 0]}
        causes = {"target": backup.mean(-1), "weight": weight.mean(-1), "Q": info["q_data"], "alpha": info["alpha"]}
        losses = {"Bellman loss": info["bellman"], "conservative loss": info["conservative"], "policy loss": actor}
        self.finite.add(self.updates, causes | losses)
        self._renew()
        return {key: value.detach() for key, value in info.items()}

    def _conservative(
        self, state: Tensor, action: Tensor, sampled: Tensor, density: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Q of the data's actions [2, E, B], Q of the sampled ones [2, E, B, K] without a gradient, and CQL(H)'s term
        [2, E, B].

        The gradient of its logsumexp is the mean of Q's over the softmax of Q - log p: `gradient_actions` drawn from
        there estimate it without bias, for a fraction of the work."""
        count = self.config.gradient_actions
        data = action[:, :, None]
        if not count:
            q = self.q(state, torch.cat([data, sampled], 2))
            gap = conservative_gap(q[..., 1:], density, q[..., 0])
            return q[..., 0], q[..., 1:].detach(), gap
        with torch.no_grad():
            q_sampled = self.q.values(state, sampled)
            chosen = softmax_sample(q_sampled - density, count, generator)[..., None]
            drawn = sampled.expand(2, *sampled.shape).gather(3, chosen.expand(*chosen.shape[:-1], action.shape[-1]))
        q = self.q(state, torch.cat([data.expand(2, *data.shape), drawn], 3))
        slope = q[..., 1:].mean(-1) - q[..., 0]
        gap = conservative_gap(q_sampled, density, q[..., 0].detach())
        return q[..., 0], q_sampled, gap + slope - slope.detach()

    def draw(self, generator: torch.Generator) -> StateBatch:
        """Each rule's members draw for themselves; together [E, B, ...]."""
        parts = [sampler.draw(len(self.config.seeds), generator) for sampler in self.samplers]
        names = [field.name for field in dataclasses.fields(StateBatch)]
        return StateBatch(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def told(self, observation: Tensor, task_index: Tensor) -> Tensor:
        """[E, B, S + N]: the observation and the one-hot vector of the task."""
        return torch.cat([observation, F.one_hot(task_index, self.num_tasks).to(observation.dtype)], -1)

    def deployable(self, policy: TanhGaussian) -> TanhGaussian:
        """A copy on the CPU for [E, B, S + N]: observations that are not normalised, and the task's one-hot vector."""
        return fold_normalisation(policy, self.mean, self.std).cpu()

    @torch.no_grad()
    def _resample(self, batch: StateBatch, generator: torch.Generator) -> tuple[StateBatch, Tensor]:
        """The own transitions and one of every `oversample` shared ones, and the weights."""
        weight = self.weigh(batch, generator)
        chosen = []
        for router, mine in self._parts():
            part = batch.of_members(mine)
            chosen.append(router.resample(part, weight[mine], self.config.oversample, generator))
        index, weight = (torch.cat(column) for column in zip(*chosen, strict=True))
        return batch.select(index), weight

    @torch.no_grad()
    def weigh(self, batch: StateBatch, generator: torch.Generator) -> Tensor:
        """The weights [E, B] of a batch that is not learned from yet."""
        state = self.told(batch.observation, batch.task_index)
        policy, _ = self.policy.sample(state, self.config.sampled_actions, generator)
        q = self.q.values(state, torch.cat([batch.action[:, :, None], policy], 2))
        return self._route(batch, q[..., 0], q[..., 1:], generator)

    @torch.no_grad()
    def _route(self, batch: StateBatch, q: Tensor, q_policy: Tensor, generator: torch.Generator) -> Tensor:
        """The weights [E, B]; Q of the data's actions [2, E, B] and of the policy's [2, E, B, K]."""
        q, q_policy, parts = q.amin(0), q_policy.amin(0).mean(-1), []
        asked = {RULES[rule].needs for rule in self.config.rules}
        q_tasks = self._q_of_tasks(batch) if "q_tasks" in asked else None
        old = None
        if self.snapshot is not None:
            state = self.told(batch.observation, batch.task_index)
            old = self.snapshot.values(state, batch.action[:, :, None])[..., 0].amin(0)
        for router, mine in self._parts():
            part = batch.of_members(mine)
            of_tasks = None if q_tasks is None else q_tasks[mine]
            known = q if old is None or not router.rule.snapshot else old
            if router.rule.snapshot and self.updates < self.config.refresh_steps:  # no Q-function to share by yet
                parts.append((part.task_index == part.source_task_index).float())
            else:
                scores = Scores(q=known[mine], q_policy=q_policy[mine], q_tasks=of_tasks)
                parts.append(router.weigh(part, scores, generator))
        return torch.cat(parts)

    def _renew(self) -> None:
        """The snapshot, when its time has come."""
        if self.snapshot is not None and self.updates % self.config.refresh_steps == 0:
            self.snapshot.load_state_dict(self.target.state_dict())
            for router in self.routers:
                if router.rule.snapshot:
                    router.forget()

    def _parts(self) -> Iterator[tuple[Router, slice]]:
        """Each rule's router and its members."""
        seeds = len(self.config.seeds)
        return ((router, slice(k * seeds, (k + 1) * seeds)) for k, router in enumerate(self.routers))

    def _q_of_tasks(self, batch: StateBatch) -> Tensor:
        """Q of the data's actions for every task, [E, B, N]."""
        members, rows = batch.task_index.shape
        observation, action = (x.repeat_interleave(self.num_tasks, 1) for x in (batch.observation, batch.action))
        every = torch.arange(self.num_tasks, device=self.device).repeat(members, rows)
        q = self.q.values(self.told(observation, every), action[:, :, None]).amin(0).view(members, rows, -1)
        trained = torch.tensor([k in self.tasks for k in range(self.num_tasks)], device=self.device)
        return q.masked_fill(~trained, -torch.inf)

    def _step(self, which: int, loss: Tensor) -> None:
        optimizer: Any = self.optimizers()[which]  # type: ignore[index]
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    # ---------------------------------------------------------------- configuration

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        config = self.config
        made = [
            torch.optim.Adam(weights, lr=rate, fused=True)
            for weights, rate in (
                (self.q.parameters(), config.critic_rate),
                ([*self.policy.parameters(), self.log_alpha], config.policy_rate),
            )
        ]
        for optimizer, state in zip(made, self.optimizer_states, strict=False):
            optimizer.load_state_dict(state)
        self.made = made
        return list(made)

    @property
    def done_steps(self) -> int:
        return self.updates

    def routing(self) -> dict[str, dict[str, Any]]:
        """Of every rule and seed what its router reports."""
        tasks, seeds = self.transitions.body.task_names, len(self.config.seeds)
        own = np.bincount(self.transitions.columns["task"], minlength=self.num_tasks)
        steps = np.stack([np.tile(own, (self.num_tasks, 1)), np.zeros((self.num_tasks, self.num_tasks), np.int64)])
        return {
            name: {**self.routers[k // seeds].report(steps, k % seeds), "tasks": tasks}
            for k, name in enumerate(self.config.member_names)
        }

    def checkpoint(self) -> dict[str, Any]:
        """All that a run goes on from: tensors and plain values. NotFiniteError where a weight is not finite."""
        self.finite.check()
        check_weights(self.updates, policy=self.policy, **{"Q-function": self.q, "target": self.target})
        return {
            "format": FORMAT,
            "data": self.data_digest,
            "updates": self.updates,
            "precision": self.trainer.precision,
            "state_dict": self.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.made],
        }

    def restore(self, checkpoint: Any, path: Path) -> str:
        """Go on from it; its precision. CheckpointError where it is another run's."""
        if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
            raise CheckpointError(f"{path}: not a checkpoint of CQL on states, format {FORMAT}")
        normalised_by = torch.stack([self.mean, self.std])
        load_weights(self, checkpoint["state_dict"], path)
        for network in (self.policy, self.q, self.target):
            check_finite(network, path)
        same = torch.allclose(normalised_by, torch.stack([self.mean, self.std]), rtol=1e-3, atol=1e-3)
        if not same or checkpoint.get("data", self.data_digest) != self.data_digest:
            raise CheckpointError(f"{path}: learned from other data than {self.config.data} holds now")
        self.updates, self.optimizer_states = checkpoint["updates"], checkpoint["optimizers"]
        return str(checkpoint["precision"])
