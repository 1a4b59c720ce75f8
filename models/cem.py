"""The cross-entropy method over a Q-function of hybrid actions, batched over states.

Shapes: `B` states, `K` candidates, actions [.., 5] as in sim/actions.py: four bounded reals and one of four commands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.encodings import one_hot

NUM_COMMANDS = 4


@dataclass(frozen=True, kw_only=True)
class CEMConfig:
    """QT-Opt (arXiv:1806.10293): 64 samples, 6 elites, 2 iterations."""

    samples: int = 64
    elites: int = 6
    iterations: int = 2

    def __post_init__(self) -> None:
        if not self.samples >= NUM_COMMANDS or not 2 <= self.elites <= self.samples or self.iterations < 1:
            raise ValueError(f"CEM needs at least 4 samples, 2 elites and 1 iteration, got {self}")


@dataclass(frozen=True)
class ActionDistribution:
    """Distribution over actions: a Gaussian motion (mean, std [B, 4], in units of the bounds) and command probabilities
    [B, 4]."""

    mean: Tensor
    std: Tensor
    command: Tensor


def sample_uniform(size: tuple[int, ...], bound: Tensor, generator: torch.Generator | None) -> Tensor:
    """Actions [*size, 5], uniform over the bounds and the commands."""
    device = bound.device
    motion = (2 * torch.rand(*size, 4, device=device, generator=generator) - 1) * bound
    command = torch.randint(NUM_COMMANDS, size, device=device, generator=generator)
    return torch.cat([motion, command[..., None].to(motion.dtype)], dim=-1)


def maximise(
    q: Callable[[Tensor], Tensor],
    num_states: int,
    bound: Tensor,
    config: CEMConfig,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The best action [B, 5] that was sampled and its value [B]; `q` maps candidates [B, K, 5] to values [B, K].

    Commands are exclusive and every round holds at least one sample of each; the Gaussian is refitted on the motion of
    the elites alone, and the next round's commands are drawn by their frequency among the elites.
    """
    size = (num_states, config.samples)
    best_action = best_value = distribution = None
    for _ in range(config.iterations):
        if distribution is None:
            action = sample_uniform(size, bound, generator)
        else:
            action = _sample(distribution, size, bound, generator)
        action[:, :NUM_COMMANDS, 4] = torch.arange(NUM_COMMANDS, device=bound.device, dtype=action.dtype)
        value = q(action)
        top, where = value.topk(config.elites, dim=1)
        elites = action.gather(1, where[..., None].expand(-1, -1, action.shape[-1]))
        if best_value is None or best_action is None:
            best_value, best_action = top[:, 0], elites[:, 0]
        else:
            better = top[:, 0] > best_value
            best_value = torch.where(better, top[:, 0], best_value)
            best_action = torch.where(better[:, None], elites[:, 0], best_action)
        motion = elites[..., :4] / bound
        counts = one_hot(elites[..., 4].long(), NUM_COMMANDS).mean(1)
        distribution = ActionDistribution(motion.mean(1), motion.std(1), counts)
    assert best_action is not None
    assert best_value is not None
    return best_action, best_value


def best_sample(
    q: Callable[[Tensor], Tensor],
    behaviour: ActionDistribution,
    samples: int,
    log_prob_weight: float,
    bound: Tensor,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The best of `samples` actions drawn from the behaviour policy pi_b, and its value; `q` gives values in [0, 1].

    argmax_a log Q(s, a) + log_prob_weight * log pi_b(a | s), a ~ pi_b. With weight 0 it is EMaQ (arXiv:2007.11091,
    eq. 3); the second term is BRAC's (arXiv:1911.11361, eq. 4), and keeps an early Q from picking rare commands by
    mistake. Half of the samples have the mean motion, so that where Q is flat in the motion it chooses the command.
    """
    action = _sample(behaviour, (len(behaviour.mean), samples), bound, generator)
    action[:, : samples // 2, :4] = (behaviour.mean * bound)[:, None]
    value = q(action)
    deviation = (action[..., :4] / bound - behaviour.mean[:, None]) / behaviour.std[:, None].clamp(min=1e-6)
    log_prob = behaviour.command.gather(1, action[..., 4].long()).log() - 0.5 * deviation.square().sum(-1)
    where = (value.clamp(min=1e-6).log() + log_prob_weight * log_prob).argmax(dim=1, keepdim=True)
    return action.gather(1, where[..., None].expand(-1, 1, action.shape[-1]))[:, 0], value.gather(1, where)[:, 0]


def _sample(p: ActionDistribution, size: tuple[int, int], bound: Tensor, generator: torch.Generator | None) -> Tensor:
    noise = torch.randn(*size, 4, device=bound.device, generator=generator)
    motion = (p.mean[:, None] + p.std[:, None] * noise).clamp(-1, 1) * bound
    odds = p.command.nan_to_num(1.0)  # a network that has diverged is found by its Q, not here
    command = torch.multinomial(odds, size[1], replacement=True, generator=generator)
    return torch.cat([motion, command[..., None].to(motion.dtype)], dim=-1)
