"""The scorer that an algorithm with a critic of states offers its sharing rules (data/scoring.py).

Shapes: `E` members, `B` transitions, `K` actions of the policy, `N` tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.state_batches import StateBatch
from models.conditioning import Conditioner
from models.stacked import TwinQ


class ConditionedQ(nn.Module):
    """A Q-function with its conditioner: what a snapshot copies."""

    def __init__(self, conditioner: Conditioner, q: TwinQ) -> None:
        super().__init__()
        self.conditioner, self.q = conditioner, q

    @torch.no_grad()
    def values(self, observation: Tensor, task_index: Tensor, action: Tensor) -> Tensor:
        """The lower of two Q-values of actions [E, B, A]: [E, B]."""
        return self.q.values(self.conditioner(observation, task_index), action[:, :, None])[..., 0].amin(0)


@dataclass(frozen=True, kw_only=True)
class CriticScorer:
    """Scores by the lower of two Q-values: `q_data` [2, E, B] of the data's actions, `q_actions` [2, E, B, K] of the
    policy's; `penalty` [E, B] is subtracted from both. `trained`: which tasks are, bool [N]."""

    q_function: ConditionedQ
    batch: StateBatch
    trained: Tensor
    q_data: Tensor
    q_actions: Tensor
    penalty: Tensor | float = 0.0

    def q(self) -> Tensor:
        return self.q_data.amin(0) - self.penalty

    def q_policy(self) -> Tensor:
        return self.q_actions.amin(0).mean(-1) - self.penalty

    @torch.no_grad()
    def q_tasks(self) -> Tensor:
        batch, count = self.batch, len(self.trained)
        members, rows = batch.task_index.shape
        observation, action = (x.repeat_interleave(count, 1) for x in (batch.observation, batch.action))
        every = torch.arange(count, device=action.device).repeat(members, rows)
        q = self.q_function.values(observation, every, action).view(members, rows, -1)
        return q.masked_fill(~self.trained, -torch.inf)

    def q_by(self, snapshot: ConditionedQ) -> Tensor:
        return snapshot.values(self.batch.observation, self.batch.task_index, self.batch.action)
