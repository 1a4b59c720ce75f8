"""Action selection from Q and the behaviour policy, for the Bellman target and for every evaluated policy."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.cem import ActionDistribution, CEMConfig, best_sample, maximise
from models.qnetwork import QNetwork, bounds
from models.small_network import SmallQNetwork
from sim.options import check_choice

WAYS = ("cem", "emaq", "behaviour_policy")


@dataclass(frozen=True, kw_only=True)
class ActingConfig:
    """How an action is chosen, `by`:

    - cem: the cross-entropy method over Q.
    - emaq: argmax of log Q + `bc_log_prob_weight` * log pi_b over `cem.samples` actions drawn from the behaviour policy
      pi_b, whose motion has the standard deviation `behaviour_policy_std`, in units of the bounds.
    - behaviour_policy: the mean motion and the most probable command of pi_b, without Q."""

    by: str = "cem"
    cem: CEMConfig = field(default_factory=CEMConfig)
    behaviour_policy_std: float = 0.1
    bc_log_prob_weight: float = 1.0

    def __post_init__(self) -> None:
        check_choice("way of acting", self.by, WAYS)


def best_action(
    network: QNetwork,
    features: Tensor,
    gripper: Tensor,
    task_index: Tensor,
    config: ActingConfig,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The best action [B, 5] and its Q-value in [0, 1], [B]. `features` come from `encode`; gripper [B, 2], task
    [B]."""
    bound = bounds(features.device)

    def q(action: Tensor) -> Tensor:
        return network.score(features, gripper, action, task_index).float().sigmoid()

    if config.by == "cem":
        return maximise(q, len(task_index), bound, config.cem, generator)
    assert isinstance(network, SmallQNetwork)
    mean, command = network.behaviour_policy(features, gripper, task_index)
    mean = mean.float().clamp(-1, 1)
    if config.by == "behaviour_policy":
        action = torch.cat([mean * bound, command.argmax(-1, keepdim=True).to(mean.dtype)], dim=-1)
        return action, q(action[:, None])[:, 0]
    std = torch.full_like(mean, config.behaviour_policy_std)
    behaviour = ActionDistribution(mean, std, command.float().softmax(-1))
    return best_sample(q, behaviour, config.cem.samples, config.bc_log_prob_weight, bound, generator)
