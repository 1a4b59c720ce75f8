"""Networks for states: several of a kind side by side, each with weights of its own, as one stacked computation.

Under autocast the layers between the first and the last multiply in bfloat16, and actions by their part of the first;
states and values do not: they need more than three digits.

Shapes: `E` members, `B` rows of each, `A` numbers of an action.
"""

from __future__ import annotations

import copy
import itertools
import math

import torch
from torch import Tensor, nn

LOG_STD = (-5.0, 2.0)  # bounds of the policy's
CACHED_ROWS = 6000  # of 256 units, of all members


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
        return self.after_first(_in_full(self.layers[0], x))

    def after_first(self, x: Tensor) -> Tensor:
        """From what the first layer gives, [E, B, hidden]."""
        for layer in self.layers[1:-1]:
            x = layer(_relu_(x))
        return _in_full(self.layers[-1], _relu_(x))


def _relu_(x: Tensor) -> Tensor:
    """In place. Where no gradient is wanted numbers in bfloat16 are clamped as the integers of the same bits and sign,
    which takes a quarter of the time on a CPU."""
    if x.dtype == torch.bfloat16 and not torch.is_grad_enabled():
        x.view(torch.int16).clamp_(min=0)
        return x
    return x.relu_()


def _in_full(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = layer(x.float())
        return out


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
        return draw(self(state), count, generator)

    def log_density(self, state: Tensor, action: Tensor) -> Tensor:
        """log pi(a | s) of actions [E, B, A] in [-1, 1]: [E, B]."""
        mean, std = self(state)
        before = action.clamp(-1 + 1e-6, 1 - 1e-6).atanh()
        normal = -0.5 * ((before - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
        return (normal - log_slope(before)).sum(-1)


@torch.no_grad()
def fold_normalisation(policy: TanhGaussian, mean: Tensor, std: Tensor) -> TanhGaussian:
    """A copy for states [E, B, S] whose first S' numbers are not normalised yet, by mean and standard deviation [S']
    (S' <= S): its first layer does that too, by W' = W / std and b' = b - (mean / std) W."""
    policy = copy.deepcopy(policy)
    first = policy.body.layers[0]
    assert isinstance(first, StackedLinear)
    weight = first.weight[:, : len(mean)].div_(std[:, None])
    first.bias.sub_((mean @ weight)[:, None])
    return policy


def draw(p: tuple[Tensor, Tensor], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` actions of each tanh of a Gaussian, mean and standard deviation [E, B, A] each, and their log-densities:
    [E, B, K, A], [E, B, K]."""
    mean, std = p
    noise = torch.randn((*mean.shape[:2], count, mean.shape[2]), generator=generator, device=mean.device)
    before = mean[:, :, None] + std[:, :, None] * noise
    normal = -0.5 * noise.square() - std.log()[:, :, None] - 0.5 * math.log(2 * math.pi)
    return before.tanh(), (normal - log_slope(before)).sum(-1)


def gaussian_kl(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> Tensor:
    """KL(p || q) of diagonal Gaussians, mean and standard deviation [..., A] each -> [...]; that of their tanh too.

    sum_a log s_q / s_p + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2"""
    (mean, std), (other_mean, other_std) = p, q
    return ((other_std / std).log() + (std**2 + (mean - other_mean) ** 2) / (2 * other_std**2) - 0.5).sum(-1)


def log_slope(before: Tensor) -> Tensor:
    """log d tanh(x) / dx = log(1 - tanh(x)^2), without loss of precision where tanh is near 1."""
    return 2 * (math.log(2) - before - torch.nn.functional.softplus(-2 * before))


class TwinQ(nn.Module):
    """Two Q-functions of each member: state [E, B, S], actions [E, B, K, A] or [2, E, B, K, A] -> [2, E, B, K].

    What the first layer makes of a state is made once for all of its actions."""

    def __init__(self, members: int, state_size: int, action_size: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.body = StackedMLP(2 * members, state_size + action_size, hidden, 1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        members, rows, count, size = action.shape[-4:]
        action = action.expand(2, members, rows, count, size).reshape(2 * members, rows * count, size)
        seen, of_action = self._of_states(state)
        act = (action @ of_action).view(2 * members, rows, count, -1)
        x = act.add_(seen[:, :, None].to(act.dtype))
        return self.body.after_first(x.flatten(1, 2)).view(2, members, rows, count)

    def _of_states(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """What the first layer makes of states, in full, [2E, B, hidden], and its part for actions, [2E, A, hidden]."""
        first, known = self.body.layers[0], state.shape[-1]
        assert isinstance(first, StackedLinear)
        of_state, of_action = first.weight.tensor_split([known], dim=1)
        with torch.autocast(state.device.type, enabled=False):
            return torch.baddbmm(first.bias, state.repeat(2, 1, 1), of_state), of_action

    @torch.no_grad()
    def values(self, state: Tensor, action: Tensor) -> Tensor:
        """As `forward`, of actions [E, B, K, A], without a gradient; on a CPU in parts that its cache holds, which go
        through the same memory."""
        if state.device.type != "cpu":
            return self(state, action)
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        with torch.autocast("cpu", enabled=False):
            return self._in_parts(state, action.to(kind))

    def _in_parts(self, state: Tensor, action: Tensor) -> Tensor:
        members, rows, count, _ = action.shape
        first, *middle, last = (layer for layer in self.body.layers if isinstance(layer, StackedLinear))
        kind = action.dtype
        seen, of_action = (each.to(kind) for each in self._of_states(state))
        action = action.repeat(2, 1, 1, 1)
        cast = [(layer.bias.to(kind), layer.weight.to(kind)) for layer in middle]
        parts = -(-rows * 2 * members * count // CACHED_ROWS)
        part = -(-rows // parts)
        shape = (2 * members, part * count)
        memory = [action.new_empty(*shape, layer.weight.shape[2]) for layer in (first, *middle)]
        in_full = torch.empty(*shape, last.weight.shape[1])
        out = torch.empty(2 * members, rows * count, 1)
        for begin in range(0, rows, part):
            here = slice(begin, begin + part)
            some = action[:, here].flatten(1, 2)
            x, *others = (each[:, : some.shape[1]] for each in memory)
            torch.bmm(some, of_action, out=x)
            x.unflatten(1, (-1, count)).add_(seen[:, here, None])
            for (bias, weight), y in zip(cast, others, strict=True):
                x = torch.baddbmm(bias, _relu_(x), weight, out=y)
            wide = in_full[:, : some.shape[1]].copy_(_relu_(x))
            torch.baddbmm(last.bias, wide, last.weight, out=out[:, begin * count : (begin + part) * count])
        return out.view(2, members, rows, count)
