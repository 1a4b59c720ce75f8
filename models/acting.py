"""Acting by Q: crop the frames, maximise by CEM. Shared by the training target and by every evaluated policy."""

from __future__ import annotations

import torch
from torch import Tensor

from models.cem import Proposal
from models.networks import QNetwork, SmallQNetwork


def crop(image: Tensor, size: int, generator: torch.Generator | None = None) -> Tensor:
    """uint8 [B, 3, H, W] -> float [B, 3, size, size] in [0, 1]: a random crop each, or the centre without generator.

    The generator lives on the CPU, so that no step waits for a device to know where to cut.
    """
    batch, _, height, width = image.shape
    if height < size or width < size:
        raise ValueError(f"frames of {height}x{width} px cannot be cropped to {size}")
    if generator is None:
        top, left = (height - size) // 2, (width - size) // 2
        out = image[:, :, top : top + size, left : left + size]
    else:
        corners = torch.randint(height - size + 1, (batch, 2), generator=generator).tolist()
        out = torch.stack([image[b, :, y : y + size, x : x + size] for b, (y, x) in enumerate(corners)])
    return out.to(torch.float32).div_(255.0).contiguous(memory_format=torch.channels_last)


def cem_start(
    network: QNetwork, features: Tensor, gripper: Tensor, task_index: Tensor, std: float
) -> Proposal | None:
    """CEM's first round: around the cloned policy where the network has one, else uniform (None)."""
    if not (isinstance(network, SmallQNetwork) and network.config.prior):
        return None
    mean, command = network.propose(features, gripper, task_index)
    mean = mean.float().clamp(-1, 1)
    return Proposal(mean, torch.full_like(mean, std), command.float().softmax(-1))
