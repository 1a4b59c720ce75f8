"""Routes single transitions: a sharing rule's weights of the rows of a batch, by the scores that came with it, and the
running statistics of own scores that it compares with.

Shapes: `E` members, `N` tasks, `B` rows of a batch, `R` scores of own transitions in the window.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.router_config import RouterConfig
from data.sharing import RULES, RuleContext, Scores


class TransitionRouter(nn.Module):
    """Its running statistics are buffers."""

    tau: Tensor  # [E, N] running average of Delta or |Delta|
    tau_known: Tensor  # bool [E, N]
    own: Tensor  # [E, N, R + 1] the last scores of own transitions; slot R takes writes that are discarded
    own_weight: Tensor  # [E, N, R + 1] what each counts
    own_count: Tensor  # int64 [E, N] own transitions seen

    def __init__(self, config: RouterConfig, num_tasks: int, members: int) -> None:
        super().__init__()
        self.config, self.rule = config, RULES[config.rule]
        window = config.window if self.rule.reference else 0
        self.register_buffer("tau", torch.zeros(members, num_tasks))
        self.register_buffer("tau_known", torch.zeros(members, num_tasks, dtype=torch.bool))
        self.register_buffer("own", torch.zeros(members, num_tasks, window + 1))
        self.register_buffer("own_weight", torch.zeros(members, num_tasks, window + 1))
        self.register_buffer("own_count", torch.zeros(members, num_tasks, dtype=torch.int64))

    @torch.no_grad()
    def weigh(self, scores: Scores, target: Tensor, shared: Tensor, own_weight: Tensor) -> Tensor:
        """Weights [E, B] that the rule gives all rows of a batch, as if they were shared; 0 where it cannot tell. Own
        rows, which count `own_weight` [E, B], are added to the statistics first."""
        with torch.autocast(self.tau.device.type, enabled=False):
            score = self._score(scores)
            if self.rule.reference:
                own = ~shared
                self._remember(score, own, target, own_weight)
                delta = score - self.reference().gather(-1, target)
                self._warm(delta, target, torch.where(own, own_weight * (self.config.temperature == "absolute"), 1.0))
            return self._weight(score, scores.q_tasks, target).nan_to_num(0.0)

    @torch.no_grad()
    def weight_as_shared(self, scores: Scores, target: Tensor) -> Tensor:
        """Weights [E, B] of rows by the statistics as they are; NaN without a reference."""
        return self._weight(self._score(scores), scores.q_tasks, target)

    def reference(self) -> Tensor:
        """Reference score of each task, [E, N]: the quantile or mean of its own scores; NaN before the first."""
        reference_of = self.config.reference_of
        assert reference_of is not None
        window = self.own[..., :-1]
        filled = torch.arange(window.shape[-1], device=window.device) < self.own_count[..., None]
        return reference_of(window.masked_fill(~filled, torch.nan), self.own_weight[..., :-1], self.config.percentile)

    def temperature(self) -> Tensor:
        """Temperature tau of each task, [E, N]: the fixed value, or the clipped running mean of Delta or |Delta|; 1 for
        a rule without Delta."""
        return self.config.tau(self.tau)

    def forget(self) -> None:
        """Drop the scores of own transitions: later ones come from another Q-function."""
        self.own_count.zero_()

    def _score(self, scores: Scores) -> Tensor:
        assert self.rule.score is not None
        return self.rule.score(scores).to(self.tau.dtype)

    def _weight(self, score: Tensor, q_tasks: Tensor | None, target: Tensor) -> Tensor:
        reference = self.reference().gather(-1, target) if self.rule.reference else torch.zeros_like(score)
        context = RuleContext(
            reference=reference,
            temperature=self.temperature().gather(-1, target),
            target=target,
            q_tasks=None if q_tasks is None else q_tasks.to(self.tau.dtype),
        )
        weight = self.rule.weight(score, context)
        return torch.where(reference.isnan(), torch.nan, weight)

    def _remember(self, score: Tensor, own: Tensor, target: Tensor, own_weight: Tensor) -> None:
        """Write own scores, marked by `own` bool [E, B], over the oldest of the window."""
        of_task = one_hot(target, self.tau) * own[..., None]
        size = self.own.shape[-1] - 1
        rank = of_task.cumsum(1).gather(-1, target[..., None])[..., 0].long() - 1
        kept = (self.own_count.gather(-1, target) + rank) % size
        last = rank >= of_task.sum(1).gather(-1, target) - size  # a batch may hold more than the window
        kept = torch.where(own & last, kept, size)
        member = torch.arange(len(target), device=target.device)[:, None]
        self.own[member, target, kept] = score
        self.own_weight[member, target, kept] = own_weight
        self.own[..., size] = self.own_weight[..., size] = 0.0
        self.own_count += of_task.sum(1).long()

    def _warm(self, delta: Tensor, target: Tensor, count: Tensor) -> None:
        """tau <- decay tau + (1 - decay) mean Delta, or |Delta|, over the rows of each task, which count [E, B]."""
        delta = delta if self.config.temperature == "signed" else delta.abs()
        count = one_hot(target, self.tau) * (count * ~delta.isnan())[..., None]
        total = count.sum(1)
        average = (count * delta.nan_to_num(0.0)[..., None]).sum(1) / total.clamp(min=1e-12)
        new = torch.where(self.tau_known, self.tau.lerp(average, 1 - self.config.decay), average)
        self.tau.copy_(torch.where(total > 0, new, self.tau))
        self.tau_known |= total > 0


def one_hot(index: Tensor, like: Tensor) -> Tensor:
    """Indices int64 [...] of the last dimension of `like` [..., N] -> [..., N], of its type; as
    models.encodings.one_hot."""
    return (index[..., None] == torch.arange(like.shape[-1], device=index.device)).to(like.dtype)
