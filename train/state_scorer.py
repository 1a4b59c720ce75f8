"""The scorer that an algorithm with a critic of states offers its sharing rules (data/scoring.py).

Shapes: `E` members, `B` transitions, `K` actions of the policy, `N` tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.state_batches import StateBatch
from models.conditioning import Conditioner
from models.stacked import TwinQ


@dataclass(frozen=True, kw_only=True)
class CriticScorer:
    """Scores by the lower of two Q-values: `q_data` [2, E, B] of the data's actions, `q_actions` [2, E, B, K] of the
    policy's. `tasks`: those that are trained."""

    q_function: TwinQ
    conditioner: Conditioner
    batch: StateBatch
    num_tasks: int
    tasks: tuple[int, ...]
    q_data: Tensor
    q_actions: Tensor

    def q(self) -> Tensor:
        return self.q_data.amin(0)

    def q_policy(self) -> Tensor:
        return self.q_actions.amin(0).mean(-1)

    @torch.no_grad()
    def q_tasks(self) -> Tensor:
        batch, count = self.batch, self.num_tasks
        members, rows = batch.task_index.shape
        observation, action = (x.repeat_interleave(count, 1) for x in (batch.observation, batch.action))
        every = torch.arange(count, device=action.device).repeat(members, rows)
        state = self.conditioner(observation, every)
        q = self.q_function.values(state, action[:, :, None]).amin(0).view(members, rows, -1)
        trained = torch.tensor([k in self.tasks for k in range(count)], device=q.device)
        return q.masked_fill(~trained, -torch.inf)

    @torch.no_grad()
    def q_by(self, snapshot: TwinQ) -> Tensor:
        state = self.conditioner(self.batch.observation, self.batch.task_index)
        return snapshot.values(state, self.batch.action[:, :, None])[..., 0].amin(0)
