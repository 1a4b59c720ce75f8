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

from models.stacked import TwinQ
from models.state_losses import alpha_loss, q_target
from models.state_policies import TanhGaussianPolicy
from models.updates import frozen, gradient_step, update_average
from sim.benchmarks.spec import Benchmark
from train.online_config import OnlineConfig, parse
from train.online_states import OnlineAlgorithm, learn


@dataclass(frozen=True, kw_only=True)
class SACConfig(OnlineConfig):
    """Every option of `python -m train sac`."""


class SAC(OnlineAlgorithm):
    """Policies, Q-functions and entropy temperatures of the tasks."""

    def __init__(self, config: SACConfig, benchmark: Benchmark, members: int) -> None:
        size, self.action_size, self.config = benchmark.observation_size, benchmark.action_size, config
        self.policy = TanhGaussianPolicy(members, size, config.hidden_sizes, self.action_size)
        self.q = TwinQ(members, size, self.action_size, config.hidden_sizes)
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.networks = {"policy": self.policy, "q": self.q, "target": self.target}
        self.log_alpha = torch.zeros(members, requires_grad=True)
        self.optimizers = [
            torch.optim.Adam(weights, lr=config.lr, fused=True)
            for weights in (self.q.parameters(), [*self.policy.parameters(), self.log_alpha])
        ]

    @torch.no_grad()
    def act(self, observation: NDArray[np.float32], generator: torch.Generator) -> NDArray[np.float32]:
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
        with frozen(self.q):
            pi_q = self.q(state, action).amin(0)[..., 0]
        entropy_loss = alpha_loss(self.log_alpha, log_prob[..., 0], self.action_size)
        actor = (alpha * log_prob[..., 0] - pi_q).mean(-1)
        gradient_step(self.optimizers[1], actor.sum() + entropy_loss)
        update_average(self.target, self.q, self.config.target_update_rate)
        return {"target": target.mean(-1), "critic loss": critic, "policy loss": actor, "alpha": alpha[:, 0]}

    def state(self) -> dict[str, Any]:
        return {**super().state(), "log_alpha": self.log_alpha.detach()}

    def restore(self, state: dict[str, Any], path: Path) -> None:
        super().restore(state, path)
        self.log_alpha.data.copy_(state["log_alpha"])


def main(arguments: list[str]) -> None:
    print(learn("SAC", parse("sac", SACConfig, arguments, __doc__), SAC, "--lr"))
