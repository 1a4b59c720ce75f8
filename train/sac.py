"""Soft actor-critic (Haarnoja et al. 2018, arXiv:1801.01290; adaptive temperature: arXiv:1812.05905), which makes the
behaviour policies and replay buffers of the state benchmarks (train/online_states.py).

Shapes: `E` tasks learned side by side, `B` transitions of each.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.checkpoint import load_finite
from models.stacked import TwinQ
from models.state_losses import alpha_loss, q_target
from models.state_policies import TanhGaussianPolicy
from models.updates import gradient_step, update_average
from sim.benchmarks.spec import Benchmark
from sim.benchmarks.table import BENCHMARKS, benchmark_by_name
from sim.options import Parser, add_options, check_choice, check_least, check_seed, from_options, option, peek_option
from train.online_states import learn
from train.precision import PRECISIONS
from train.presets import preset_for


@dataclass(frozen=True, kw_only=True)
class SACConfig:
    """Every option of `python -m train sac`."""

    benchmark: str = option("walker2d", f"of {', '.join(BENCHMARKS)}; it chooses the preset")
    tasks: tuple[str, ...] = option((), "of the benchmark, to learn side by side; default: all")
    out: str = option("runs/walker2d-sac", "folder of the run")
    seed: int = option(0, "of everything")
    steps: int = option(500_000, "steps of each task's environment")
    start_steps: int = option(5000, "random actions first, without learning")
    update_every: int = option(1, "environment steps of each task for one update")
    batch_size: int = option(256, "transitions of each task")
    lr: float = option(3e-4, "learning rate of Adam, policies, Q-functions and entropy temperatures")
    discount: float = option(0.99, "gamma")
    target_update_rate: float = option(5e-3, "weight of the new network in the target's running average")
    hidden_sizes: tuple[int, ...] = option((256, 256), "units of the hidden layers")
    keep_every: int = option(100_000, "steps between policies that are kept; the last is kept too")
    checkpoint_every: int = option(10_000, "steps between checkpoints, from which the same command goes on")
    replay_steps: int = option(109_900, "steps that are kept as the replay buffer (CDS, table 3)")
    precision: str = option("auto", "of the middle layers: 32-true, bf16-mixed, or auto: what the hardware has")

    def __post_init__(self) -> None:
        for name in self.tasks:
            benchmark_by_name(self.benchmark).task_index(name)
        check_choice("precision", self.precision, PRECISIONS)
        check_seed(self, "seed")
        counts = ("steps", "start_steps", "update_every", "batch_size", "keep_every", "checkpoint_every")
        check_least(self, 1, *counts, "replay_steps")
        if self.steps <= self.start_steps:
            raise ValueError(f"steps {self.steps}: after start_steps {self.start_steps} none is left to learn by")


class SAC:
    """Policies, Q-functions and entropy temperatures of the tasks."""

    def __init__(self, config: SACConfig, benchmark: Benchmark, members: int) -> None:
        size, self.action_size, self.config = benchmark.observation_size, benchmark.action_size, config
        self.policy = TanhGaussianPolicy(members, size, config.hidden_sizes, self.action_size)
        self.q = TwinQ(members, size, self.action_size, config.hidden_sizes)
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.networks: dict[str, torch.nn.Module] = {"policy": self.policy, "q": self.q, "target": self.target}
        self.log_alpha = torch.zeros(members, requires_grad=True)
        self.optimizers = [
            torch.optim.Adam(weights, lr=config.lr, fused=True)
            for weights in (self.q.parameters(), [*self.policy.parameters(), self.log_alpha])
        ]

    @torch.no_grad()
    def act(self, observation: NDArray[np.float32], generator: torch.Generator) -> NDArray[np.float32]:
        """Sampled actions [E, A] at observations [E, S]."""
        noise = torch.randn((len(observation), 1, 1, self.action_size), generator=generator)
        return self.policy.sample(torch.from_numpy(observation[:, None]), noise)[0][:, 0, 0].numpy()

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """One step of everything; the losses [E]. `batch`: observation, action, reward, next_observation, done, each
        [E, B, ...]."""
        state, alpha = batch["observation"], self.log_alpha.exp().detach()[:, None]
        next_noise, noise = (torch.randn(batch["action"][:, :, None].shape, generator=generator) for _ in range(2))
        with torch.no_grad():
            next_action, next_log_prob = self.policy.sample(batch["next_observation"], next_noise)
            next_q = self.target(batch["next_observation"], next_action).amin(0)[..., 0]
            entropy = -alpha * next_log_prob[..., 0]
            target = q_target(batch["reward"], batch["done"], next_q, entropy, self.config.discount)
        q = self.q(state, batch["action"][:, :, None])[..., 0]
        critic = (q - target).square().mean(-1).sum(0)
        action, log_prob = self.policy.sample(state, noise)
        gradient_step(self.optimizers[0], critic.sum())
        self.q.requires_grad_(False)
        pi_q = self.q(state, action).amin(0)[..., 0]
        entropy_loss = alpha_loss(self.log_alpha, log_prob[..., 0], self.action_size)
        actor = (alpha * log_prob[..., 0] - pi_q).mean(-1)
        gradient_step(self.optimizers[1], actor.sum() + entropy_loss)
        self.q.requires_grad_(True)
        update_average(self.target, self.q, self.config.target_update_rate)
        return {"target": target.mean(-1), "critic loss": critic, "policy loss": actor, "alpha": alpha[:, 0]}

    def state(self) -> dict[str, Any]:
        """Weights by network and name, log_alpha [E], and Adam's state of Q-functions and of policies."""
        return {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "log_alpha": self.log_alpha.detach(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """From what `state` gave; CheckpointError where its networks are others."""
        for name, network in self.networks.items():
            load_finite(network, state["networks"][name], path)
        self.log_alpha.data.copy_(state["log_alpha"])
        for optimizer, found in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(found)


def main(arguments: list[str]) -> None:
    name = benchmark_by_name(peek_option(arguments, "--benchmark", SACConfig.benchmark)).name
    preset = {"benchmark": name, "out": f"runs/{name}-sac", **preset_for("sac", name, SACConfig)}
    parser = Parser(prog="python -m train sac", description=__doc__)
    add_options(parser, SACConfig, SACConfig(**preset))
    config = from_options(SACConfig, vars(parser.parse_args(arguments)), **preset)
    print(learn("SAC", config, SAC, "--lr"))
