"""Networks for states: several of a kind side by side, each with weights of its own, as one stacked computation.

Shapes: `E` members, `B` rows of each, `A` numbers of an action.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

LOG_STD = (-5.0, 2.0)  # bounds of the policy's


class StackedLinear(nn.Module):
    """[E, B, in] -> [E, B, out]"""

    def __init__(self, members: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = in_features**-0.5  # as torch.nn.Linear begins
        self.weight = nn.Parameter(torch.empty(members, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        if len(self.weight) == 1:
            return torch.addmm(self.bias[0], x[0], self.weight[0])[None]
        return torch.baddbmm(self.bias, x, self.weight)


class StackedMLP(nn.Module):
    """ReLU layers of `hidden` units and a linear one: [E, B, in] -> [E, B, out]."""

    def __init__(self, members: int, in_features: int, hidden: tuple[int, ...], out_features: int) -> None:
        super().__init__()
        sizes = [in_features, *hidden, out_features]
        pairs = itertools.pairwise(sizes)
        self.layers = nn.ModuleList(StackedLinear(members, a, b) for a, b in pairs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu_()
        return self.layers[-1](x)


class TanhGaussian(nn.Module):
    """Policies pi(a | s): the tanh of a Gaussian, actions in [-1, 1] (SAC, arXiv:1801.01290, app. C)."""

    def __init__(self, members: int, state_size: int, hidden: tuple[int, ...], action_size: int) -> None:
        super().__init__()
        self.body = StackedMLP(members, state_size, hidden, 2 * action_size)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, before the tanh, [E, B, A] each."""
        mean, log_std = self.body(state).chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD).exp()

    def sample(self, state: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` actions of each state and their log-densities: [E, B, K, A], [E, B, K]."""
        mean, std = self(state)
        noise = torch.randn((*mean.shape[:2], count, mean.shape[2]), generator=generator, device=mean.device)
        before = mean[:, :, None] + std[:, :, None] * noise
        normal = -0.5 * noise.square() - std.log()[:, :, None] - 0.5 * math.log(2 * math.pi)
        return before.tanh(), (normal - log_slope(before)).sum(-1)

    def log_density(self, state: Tensor, action: Tensor) -> Tensor:
        """log pi(a | s) of actions [E, B, A] in [-1, 1]: [E, B]."""
        mean, std = self(state)
        before = action.clamp(-1 + 1e-6, 1 - 1e-6).atanh()
        normal = -0.5 * ((before - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
        return (normal - log_slope(before)).sum(-1)


def log_slope(before: Tensor) -> Tensor:
    """log d tanh(x) / dx = log(1 - tanh(x)^2), without loss of precision where tanh is near 1."""
    return 2 * (math.log(2) - before - torch.nn.functional.softplus(-2 * before))


class TwinQ(nn.Module):
    """Two Q-functions of each member: state [E, B, S], actions [E, B, K, A] -> [2, E, B, K].

    What the first layer makes of a state is made once for all of its actions."""

    def __init__(self, members: int, state_size: int, action_size: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.members = members
        both, bound = 2 * members, (state_size + action_size) ** -0.5  # of the joint first layer
        self.of_state = StackedLinear(both, state_size, hidden[0])
        self.of_action = nn.Parameter(torch.empty(both, action_size, hidden[0]).uniform_(-bound, bound))
        self.of_state.weight.data.uniform_(-bound, bound)
        self.of_state.bias.data.uniform_(-bound, bound)
        self.rest = StackedMLP(both, hidden[0], hidden[1:], 1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        members, rows, count, size = action.shape
        seen = self.of_state(state.repeat(2, 1, 1))
        act = action.reshape(members, rows * count, size).repeat(2, 1, 1) @ self.of_action
        x = (seen[:, :, None] + act.view(2 * members, rows, count, -1)).relu_()
        return self.rest(x.flatten(1, 2)).view(2, members, rows, count)
