"""What TD3 (train/td3.py) and TD3+BC (train/td3_bc.py) have in common: options, and the target of the critic.

Shapes: `E` members, `B` transitions of each, `S` and `A` dimensions of a state and an action.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.stacked import TwinQ
from models.state_losses import q_target, smoothed_action
from models.state_policies import DeterministicPolicy
from sim.options import check_least, option


@dataclass(frozen=True, kw_only=True)
class TD3Options:
    policy_noise: float = option(0.2, "standard deviation of what smooths the target policy's actions")
    noise_clip: float = option(0.5, "bound of that noise")
    policy_delay: int = option(2, "updates of the critic for one of the policy and the targets")

    def check_td3(self) -> None:
        """ValueError for an option that makes no sense."""
        check_least(self, 0, "policy_noise", "noise_clip")
        check_least(self, 1, "policy_delay")


@torch.no_grad()
def smoothed_target(
    options: TD3Options,
    discount: float,
    networks: tuple[DeterministicPolicy, TwinQ],
    next_state: Tensor,
    reward: Tensor,
    done: Tensor,
    noise: Tensor,
) -> Tensor:
    """r + gamma (1 - d) min_k Q'_k(s', a'), a' the target policy's smoothed action (TD3, arXiv:1802.09477, eq. 14):
    [E, B]. `networks`: the target policy and the target Q-functions; next states [E, B, S], rewards and ends [E, B],
    standard normal noise [E, B, A]."""
    policy, q = networks
    action = smoothed_action(policy.action(next_state), noise, options.policy_noise, options.noise_clip)
    return q_target(reward, done, q(next_state, action[:, :, None]).amin(0)[..., 0], 0.0, discount)
