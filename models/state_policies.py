"""Policies of states: a network behind a conditioner and a normaliser, several members side by side.

Shapes: `E` members, `B` rows of each, `S` observation and `A` action dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.conditioning import Normaliser
from models.distributions import Gaussian, log_prob, sample_with_log_prob
from models.stacked import StackedMLP

LOG_STD = (-5.0, 2.0)  # bounds
EXPLORATION_STD = 0.1  # of a deterministic policy (TD3, table 3)


class TanhGaussianPolicy(nn.Module):
    """pi(a | s), the tanh of a Gaussian, for actions in [-1, 1] (SAC, arXiv:1801.01290, app. C)."""

    outputs = 2  # of the network, for each dimension of an action

    def __init__(self, members: int, state_size: int, hidden_sizes: tuple[int, ...], action_size: int) -> None:
        super().__init__()
        self.members, self.hidden_sizes, self.action_size = members, hidden_sizes, action_size
        self.mlp = StackedMLP(members, state_size, hidden_sizes, self.outputs * action_size)

    def forward(self, state: Tensor) -> Gaussian:
        """Mean and standard deviation before the tanh, [E, B, A] each."""
        mean, log_std = self.mlp(state).chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD).exp()

    def sample(self, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions of each state by standard normal `noise` [E, B, K, A], and their log-densities: [E, B, K, A],
        [E, B, K]."""
        return sample_with_log_prob(self(state), noise)

    def actions(self, state: Tensor, noise: Tensor) -> Tensor:
        """Actions [E, B, K, A] that it takes at states, by standard normal noise of that shape."""
        return self.sample(state, noise)[0]

    def explore(self, state: Tensor, noise: Tensor) -> Tensor:
        """Actions [E, B, K, A] for collection."""
        return self.actions(state, noise)

    def log_prob(self, state: Tensor, action: Tensor) -> Tensor:
        """log pi(a | s) of actions [E, B, A]: [E, B]."""
        return log_prob(self(state), action)


class DeterministicPolicy(TanhGaussianPolicy):
    """a = tanh(f(s)) (TD3, arXiv:1802.09477); in collection with noise of EXPLORATION_STD, which is also the standard
    deviation where a distribution is asked for."""

    outputs = 1

    def forward(self, state: Tensor) -> Gaussian:
        mean = self.mlp(state)
        return mean, torch.full_like(mean, EXPLORATION_STD)

    def action(self, state: Tensor) -> Tensor:
        """[E, B, S] -> [E, B, A]"""
        return self(state)[0].tanh()

    def actions(self, state: Tensor, noise: Tensor) -> Tensor:
        """The same for every k, whatever the noise."""
        return self.action(state)[:, :, None].expand_as(noise)

    def explore(self, state: Tensor, noise: Tensor) -> Tensor:
        return (self.action(state)[:, :, None] + EXPLORATION_STD * noise).clamp(-1, 1)


POLICIES: dict[str, type[TanhGaussianPolicy]] = {"gaussian": TanhGaussianPolicy, "deterministic": DeterministicPolicy}


class StatePolicy(nn.Module):
    """Normaliser -> conditioner -> network: acts on observations as the environment gives them."""

    def __init__(self, normaliser: Normaliser, conditioner: Any, network: TanhGaussianPolicy) -> None:
        super().__init__()
        self.normaliser, self.conditioner, self.network = normaliser, conditioner, network

    def forward(self, observation: Tensor, task_index: Tensor) -> Gaussian:
        """Observation [E, B, S], task int64 [E, B] -> mean and standard deviation before the tanh, [E, B, A] each."""
        return self.network(self.state(observation, task_index))

    def state(self, observation: Tensor, task_index: Tensor) -> Tensor:
        """The network's input [E, B, S']."""
        found: Tensor = self.conditioner(self.normaliser(observation), task_index)
        return found

    @torch.no_grad()
    def act(self, observation: NDArray[np.float32], task_index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Deterministic actions tanh(mean) [E, B, A], as used in evaluation."""
        return self(torch.from_numpy(observation), torch.from_numpy(task_index))[0].tanh().numpy()

    @torch.no_grad()
    def explore(
        self, observation: NDArray[np.float32], task_index: NDArray[np.int64], generator: torch.Generator
    ) -> NDArray[np.float32]:
        """Sampled actions [E, B, A], as used in collection."""
        state = self.state(torch.from_numpy(observation), torch.from_numpy(task_index))
        noise = torch.randn((*observation.shape[:2], 1, self.network.action_size), generator=generator)
        return self.network.explore(state, noise)[:, :, 0].numpy()
