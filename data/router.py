"""The router: a sharing rule, a scorer of Q-values and a temperature per task, applied to whole batches.

`scorer` is any callable that gives the conservative Q-value of a batch's own actions for its target tasks, [B].
The router keeps, per target task, the running average of |Delta| that serves as CDS's temperature (app. C.1; of |Delta|
rather than Delta because a signed average may reach zero or below), and the running mean weight per source and target.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.batches import Batch
from data.processes import gather, mine
from data.sharing import RULES, RuleContext, advantage
from sim.options import choose


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """`tau_low` and `tau_high` clip the temperature; `decay` is that of its running average (app. C.1: 0.995)."""

    rule: str = "cds"
    percentile: float = 10.0
    decay: float = 0.995
    tau_low: float = 1e-3
    tau_high: float = float("inf")

    def __post_init__(self) -> None:
        choose("sharing rule", self.rule, tuple(RULES))
        if not 0 <= self.percentile <= 100:
            raise ValueError(f"the percentile is 0 to 100 percent from the top, got {self.percentile}")


class Router(torch.nn.Module):
    """Weighs batches. Its averages are buffers, so they travel with the checkpoint and with the device."""

    tau: Tensor
    report_weight: Tensor
    report_count: Tensor

    def __init__(self, config: RouterConfig, num_tasks: int) -> None:
        super().__init__()
        self.config = config
        self.rule = RULES[config.rule]
        self.register_buffer("tau", torch.zeros(num_tasks))  # 0: no average yet
        self.register_buffer("report_weight", torch.zeros(num_tasks, num_tasks))  # [target, source], running sums
        self.register_buffer("report_count", torch.zeros(num_tasks, num_tasks))

    @torch.no_grad()
    def weigh(self, batch: Batch, q: Tensor | None) -> Tensor:
        """Weights [B]: 1 for own transitions, the rule's for shared ones. `q` [B] is needed where the rule uses it.

        Shared transitions are compared with the own ones of all processes, whose averages stay the same; without any
        they weigh nothing."""
        target, source, is_shared = (gather(x) for x in (batch.task_index, batch.source_task_index, batch.is_shared))
        weight = torch.ones(len(target), dtype=self.tau.dtype, device=target.device)
        if self.rule.uses_q:
            assert q is not None, f"rule {self.rule.name} needs Q-values"
            q = gather(q.to(self.tau.dtype))
            for task in target.unique().tolist():
                shared, own = (target == task) & is_shared, (target == task) & ~is_shared
                if shared.any():
                    weight[shared] = self._weigh_task(task, q[shared], q[own]) if own.any() else 0.0
        else:
            weight[is_shared] = self.rule.weigh(weight[is_shared], weight[~is_shared], RuleContext())
        self._count(target, source, weight)
        return mine(weight)

    def _weigh_task(self, task: int, q_shared: Tensor, q_own: Tensor) -> Tensor:
        config = self.config
        spread = advantage(q_shared, q_own, RuleContext(percentile=config.percentile)).abs().mean()
        old = self.tau[task]
        self.tau[task] = torch.where(old > 0, config.decay * old + (1 - config.decay) * spread, spread)
        temperature = float(self.tau[task].clamp(config.tau_low, config.tau_high))
        context = RuleContext(percentile=config.percentile, temperature=temperature)
        return self.rule.weigh(q_shared, q_own, context)

    def _count(self, target: Tensor, source: Tensor, weight: Tensor) -> None:
        cell, ones = (target, source), torch.ones_like(weight)
        for table, value in ((self.report_weight, weight), (self.report_count, ones)):
            table.mul_(0.999).index_put_(cell, value, accumulate=True)

    def report(self) -> list[list[float | None]]:
        """Mean weight per [target][source], over the last thousand steps or so; None where nothing was drawn."""
        mean = (self.report_weight / self.report_count).tolist()
        return [[v if v == v else None for v in row] for row in mean]
