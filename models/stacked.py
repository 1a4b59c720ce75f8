"""Networks for states: several of a kind side by side, each with weights of its own, as one stacked computation.

Under autocast the layers between the first and the last multiply in bfloat16, and actions by their part of the first;
states and values do not: they need more than three digits.

Shapes: `E` members, `B` rows of each, `K` actions of a row, `S` and `A` dimensions of a state and an action.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

CACHED_ROWS = 6000  # of 256 units, of all members
Network = TypeVar("Network", bound=nn.Module)


class StackedLinear(nn.Module):
    """[E, B, in] -> [E, B, out]"""

    def __init__(self, members: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = in_features**-0.5  # as torch.nn.Linear begins
        self.weight = nn.Parameter(torch.empty(members, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor, count: int | None = None) -> Tensor:
        """`count`: of so many members, the first ones, alone."""
        weight, bias = (self.weight, self.bias) if count is None else (self.weight[:count], self.bias[:count])
        if len(weight) == 1:
            return torch.addmm(bias[0], x[0], weight[0])[None]
        return torch.baddbmm(bias, x, weight)


class StackedMLP(nn.Module):
    """ReLU layers of `hidden_sizes` units and a linear one: [E, B, in] -> [E, B, out]."""

    def __init__(self, members: int, in_features: int, hidden_sizes: tuple[int, ...], out_features: int) -> None:
        super().__init__()
        sizes = [in_features, *hidden_sizes, out_features]
        pairs = itertools.pairwise(sizes)
        self.layers = nn.ModuleList(StackedLinear(members, a, b) for a, b in pairs)

    def forward(self, x: Tensor, count: int | None = None) -> Tensor:
        """`count`: of so many members, the first ones, alone."""
        return self.after_first(_in_full(self.layers[0], x, count), count)

    def after_first(self, x: Tensor, count: int | None = None) -> Tensor:
        """The layers after the first, from its output [E, B, hidden]."""
        for layer in self.layers[1:-1]:
            x = layer(_relu_(x), count)
        return _in_full(self.layers[-1], _relu_(x), count)


def _relu_(x: Tensor) -> Tensor:
    """In place. Where no gradient is wanted numbers in bfloat16 are clamped as the integers of the same bits and sign,
    which takes a quarter of the time on a CPU."""
    if x.dtype == torch.bfloat16 and not torch.is_grad_enabled():
        x.view(torch.int16).clamp_(min=0)
        return x
    return x.relu_()


def _in_full(layer: nn.Module, x: Tensor, count: int | None) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = layer(x.float(), count)
        return out


@torch.no_grad()
def initialise_weights(network: Network, members: int, uniform: Callable[..., Tensor]) -> Network:
    """The network, its stacked layers initialised as torch.nn.Linear is, by numbers of each member's own.

    `uniform(*shape)`: numbers in [0, 1) of each member, [E, *shape]. A layer may have several networks of each member,
    as TwinQ has: [2E, ...], one network of all members after another."""
    for layer in network.modules():
        if isinstance(layer, StackedLinear):
            bound = layer.weight.shape[1] ** -0.5
            for parameter in (layer.weight, layer.bias):
                drawn = uniform(len(parameter) // members, *parameter.shape[1:]).transpose(0, 1).flatten(0, 1)
                parameter.copy_((2 * drawn - 1) * bound)
    return network


class TwinQ(nn.Module):
    """Two Q-functions of each member: state [E, B, S], actions [E, B, K, A] or [2, E, B, K, A] -> [2, E, B, K].

    The first layer's product with a state is computed once for all of its actions."""

    def __init__(self, members: int, state_size: int, action_size: int, hidden_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.mlp = StackedMLP(2 * members, state_size + action_size, hidden_sizes, 1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        members, rows, count, size = action.shape[-4:]
        action = action.expand(2, members, rows, count, size).reshape(2 * members, rows * count, size)
        seen, of_action = self._first_layer(state)
        act = (action @ of_action).view(2 * members, rows, count, -1)
        x = act.add_(seen[:, :, None].to(act.dtype))
        return self.mlp.after_first(x.flatten(1, 2)).view(2, members, rows, count)

    def first(self, state: Tensor, action: Tensor) -> Tensor:
        """The first Q-function of each member alone, of one action [E, B, A] of each state: [E, B]."""
        found: Tensor = self.mlp(torch.cat([state, action], -1), len(state))
        return found[..., 0]

    def _first_layer(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Output of the first layer for states, float32 [2E, B, hidden]; its weights for actions, [2E, A, hidden]."""
        first, known = self.mlp.layers[0], state.shape[-1]
        assert isinstance(first, StackedLinear)
        of_state, of_action = first.weight.tensor_split([known], dim=1)
        with torch.autocast(state.device.type, enabled=False):
            return torch.baddbmm(first.bias, state.repeat(2, 1, 1), of_state), of_action

    @torch.no_grad()
    def values(self, state: Tensor, action: Tensor) -> Tensor:
        """As `forward`, of actions [E, B, K, A], without a gradient; on a CPU in blocks that fit its cache, which reuse
        the same memory."""
        if state.device.type != "cpu":
            return self(state, action)
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        with torch.autocast("cpu", enabled=False):
            return self._in_blocks(state, action.to(kind))

    def _in_blocks(self, state: Tensor, action: Tensor) -> Tensor:
        members, rows, count, _ = action.shape
        first, *middle, last = (layer for layer in self.mlp.layers if isinstance(layer, StackedLinear))
        kind = action.dtype
        seen, of_action = (each.to(kind) for each in self._first_layer(state))
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
