"""Photometric augmentation of training pictures, on their device."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

GROUPS = 8  # parts of a batch that draw for themselves
# QT-Opt's ranges; its code adds the brightness where this multiplies by it.
JITTER = v2.ColorJitter(brightness=0.125, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=0.2)


def photometric(image: Tensor, seed: int) -> Tensor:
    """Float [B, 3, H, W] in [0, 1] with brightness, contrast, saturation and hue of each of `GROUPS` parts changed at
    random. Every `GROUPS`-th picture belongs to one part, so that each task's pictures, which lie together, vary."""
    out = torch.empty_like(image)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the transform draws from no other
        for part in range(min(GROUPS, len(image))):
            out[part::GROUPS] = JITTER(image[part::GROUPS])
    return out
