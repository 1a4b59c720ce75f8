"""Twin delayed deep deterministic policy gradients (TD3, Fujimoto et al. 2018, arXiv:1802.09477), which made HCSAC's
data (train/online_states.py). TD3+BC, its offline form, is train/td3_bc.py.

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
from models.state_policies import DeterministicPolicy
from models.updates import frozen, gradient_step, update_average
from sim.benchmarks.spec import Benchmark
from sim.options import check_least, option
from train.online_config import OnlineConfig, parse
from train.online_states import OnlineAlgorithm, learn
from train.td3_target import TD3Options, smoothed_target


@dataclass(frozen=True, kw_only=True)
class TD3Config(TD3Options, OnlineConfig):
    """Every option of `python -m train td3`; defaults: table 3 of the paper, rates and sizes of its code."""

    out: str = option("runs/walker2d-td3", "folder of the run")
    start_steps: int = option(25_000, "random actions first, without learning")
    lr: float = option(3e-4, "learning rate of Adam, policies and Q-functions")
    exploration_noise: float = option(0.1, "standard deviation of what is added to an action while it learns")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 0, "exploration_noise")
        self.check_td3()


class TD3(OnlineAlgorithm):
    """Policies and Q-functions of the tasks, and running averages of both."""

    policy: DeterministicPolicy

    def __init__(self, config: TD3Config, benchmark: Benchmark, members: int) -> None:
        size, self.action_size, self.config = benchmark.observation_size, benchmark.action_size, config
        self.policy = DeterministicPolicy(members, size, config.hidden_sizes, self.action_size)
        self.q = TwinQ(members, size, self.action_size, config.hidden_sizes)
        self.target_policy = copy.deepcopy(self.policy).requires_grad_(False)
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.networks = {"policy": self.policy, "target_policy": self.target_policy, "q": self.q, "target": self.target}
        self.optimizers = [
            torch.optim.Adam(network.parameters(), lr=config.lr, fused=True) for network in (self.q, self.policy)
        ]
        self.updates = 0

    @torch.no_grad()
    def act(self, observation: NDArray[np.float32], generator: torch.Generator) -> NDArray[np.float32]:
        action = self.policy.action(torch.from_numpy(observation[:, None]))[:, 0]
        noise = torch.randn(action.shape, generator=generator)
        return (action + self.config.exploration_noise * noise).clamp(-1, 1).numpy()

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """One step of the critic, and in every `policy_delay`-th of the rest; the losses [E]. `batch`: observation,
        action, reward, next_observation, done, each [E, B, ...]."""
        config, state = self.config, batch["observation"]
        noise = torch.randn(batch["action"].shape, generator=generator)
        targets, next_state = (self.target_policy, self.target), batch["next_observation"]
        target = smoothed_target(config, config.discount, targets, next_state, batch["reward"], batch["done"], noise)
        q = self.q(state, batch["action"][:, :, None])[..., 0]
        critic = (q - target).square().mean(-1).sum(0)
        gradient_step(self.optimizers[0], critic.sum())
        losses = {"target": target.mean(-1), "critic loss": critic.detach()}
        self.updates += 1
        if self.updates % config.policy_delay == 0:
            with frozen(self.q):
                actor = -self.q.first(state, self.policy.action(state)).mean(-1)
            gradient_step(self.optimizers[1], actor.sum())
            update_average(self.target, self.q, config.target_update_rate)
            update_average(self.target_policy, self.policy, config.target_update_rate)
            losses["policy loss"] = actor.detach()
        return losses

    def state(self) -> dict[str, Any]:
        return {**super().state(), "updates": self.updates}

    def restore(self, state: dict[str, Any], path: Path) -> None:
        super().restore(state, path)
        self.updates = state["updates"]


def main(arguments: list[str]) -> None:
    print(learn("TD3", parse("td3", TD3Config, arguments, __doc__), TD3, "--lr"))
