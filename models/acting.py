"""Acting by Q: crop the frames, maximise by CEM. Shared by the training target and by every evaluated policy."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.cem import CEMConfig, Proposal, best_proposal, maximise
from models.qnetwork import QNetwork, bounds
from models.small_network import SmallQNetwork
from sim.options import check_choice

WAYS = ("cem", "proposals", "clone")


@dataclass(frozen=True, kw_only=True)
class ActingConfig:
    """How an action is chosen, `by`:

    - cem: the cross-entropy method over Q.
    - proposals: log Q + `prior_loyalty` log pi_b over `cem.samples` actions drawn from the cloned policy pi_b, whose
      motion has the spread `prior_std`, in units of the bounds.
    - clone: the mean of pi_b and its likeliest command, without Q."""

    by: str = "cem"
    cem: CEMConfig = field(default_factory=CEMConfig)
    prior_std: float = 0.1
    prior_loyalty: float = 1.0

    def __post_init__(self) -> None:
        check_choice("way of acting", self.by, WAYS)


def crop_corner(image: Tensor, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Where to cut frames [B, 3, H, W]: left and top, px, int64 [B, 2]; the centre, or at random with a generator.

    The generator lives on the CPU, so that no step waits for a device to know where to cut.
    """
    batch, _, height, width = image.shape
    if height < size or width < size:
        raise ValueError(f"frames of {height}x{width} px cannot be cropped to {size}")
    if generator is None:
        return torch.tensor([[(width - size) // 2, (height - size) // 2]]).expand(batch, 2)
    room = torch.tensor([width - size + 1, height - size + 1])
    return (torch.rand(batch, 2, generator=generator) * room).long()


def crop(image: Tensor, size: int, corner: Tensor | None = None) -> Tensor:
    """uint8 [B, 3, H, W] -> float [B, 3, size, size] in [0, 1], cut at `corner`, or at the centre without one."""
    if corner is None:
        x, y = crop_corner(image[:1], size)[0].tolist()
        out = image[:, :, y : y + size, x : x + size]
    else:
        out = torch.stack([image[b, :, y : y + size, x : x + size] for b, (x, y) in enumerate(corner.tolist())])
    return out.to(torch.float32).div_(255.0).contiguous(memory_format=torch.channels_last)


def in_crop(point: Tensor, image: Tensor, corner: Tensor, size: int) -> Tensor:
    """Points [B, P, 2] in sides of the frames [B, 3, H, H] -> in sides of their crops of `size` px at `corner`."""
    return (point * image.shape[-1] - corner[:, None]) / size


def best_action(
    network: QNetwork,
    features: Tensor,
    gripper: Tensor,
    task_index: Tensor,
    config: ActingConfig,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The best action [B, 5] and its value in [0, 1], [B], of states: `features` as `encode` gives them, gripper
    [B, 2], task [B]."""
    bound = bounds(features.device)

    def q(action: Tensor) -> Tensor:
        return network.score(features, gripper, action, task_index).float().sigmoid()

    if config.by == "cem":
        return maximise(q, len(task_index), bound, config.cem, generator)
    assert isinstance(network, SmallQNetwork)
    mean, command = network.propose(features, gripper, task_index)
    mean = mean.float().clamp(-1, 1)
    if config.by == "clone":
        action = torch.cat([mean * bound, command.argmax(-1, keepdim=True).to(mean.dtype)], dim=-1)
        return action, q(action[:, None])[:, 0]
    proposal = Proposal(mean, torch.full_like(mean, config.prior_std), command.float().softmax(-1))
    return best_proposal(q, proposal, config.cem.samples, config.prior_loyalty, bound, generator)
