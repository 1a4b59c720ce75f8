"""Preprocessing of camera frames for the networks: crops, and augmentation in training."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

GROUPS = 8  # of a batch, each with a colour change of its own
# QT-Opt's ranges; its code adds the brightness where this multiplies by it.
JITTER = v2.ColorJitter(brightness=0.125, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=0.2)


def crop_corner(image: Tensor, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Left and top corner of a crop of frames [B, 3, H, W], px, int64 [B, 2]: at the centre, or at random with a
    generator. The generator lives on the CPU, so that no step waits for a device to learn the corner."""
    batch, _, height, width = image.shape
    if height < size or width < size:
        raise ValueError(f"frames of {height}x{width} px cannot be cropped to {size}")
    if generator is None:
        return torch.tensor([[(width - size) // 2, (height - size) // 2]]).expand(batch, 2)
    room = torch.tensor([width - size + 1, height - size + 1])
    return (torch.rand(batch, 2, generator=generator) * room).long()


def crop(image: Tensor, size: int, corner: Tensor | None = None) -> Tensor:
    """Crop frames uint8 [B, 3, H, W] to float [B, 3, size, size] in [0, 1], at `corner` [B, 2] or at the centre."""
    if corner is None:
        x, y = crop_corner(image[:1], size)[0].tolist()
        out = image[:, :, y : y + size, x : x + size]
    else:
        out = torch.stack([image[b, :, y : y + size, x : x + size] for b, (x, y) in enumerate(corner.tolist())])
    return out.to(torch.float32).div_(255.0).contiguous(memory_format=torch.channels_last)


def in_crop(point: Tensor, image: Tensor, corner: Tensor, size: int) -> Tensor:
    """Points [B, P, 2] in units of the frame's side -> in units of the side of the crop of `size` px at `corner`."""
    return (point * image.shape[-1] - corner[:, None]) / size


def photometric(image: Tensor, seed: int) -> Tensor:
    """Photometric augmentation of images [B, 3, H, W] in [0, 1]: brightness, contrast, saturation and hue of each of
    `GROUPS` groups change at random. Every `GROUPS`-th image is of one group, so that the images of a task, which lie
    together in a batch, vary."""
    out = torch.empty_like(image)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the transform draws from no other
        for group in range(min(GROUPS, len(image))):
            out[group::GROUPS] = JITTER(image[group::GROUPS])
    return out


def preprocess(frames: Tensor, size: int, seed: int, random_crop: bool, vary_colours: bool) -> tuple[Tensor, Tensor]:
    """Training images float [B, 3, size, size] of frames uint8 [B, 3, H, H], and the corners of their crops [B, 2]."""
    generator = torch.Generator().manual_seed(seed) if random_crop else None
    corner = crop_corner(frames, size, generator)
    image = crop(frames, size, corner)
    return photometric(image, seed) if vary_colours else image, corner
