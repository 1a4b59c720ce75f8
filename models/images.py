"""Preprocessing of camera frames for the networks: crops, and augmentation in training."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

# QT-Opt's ranges of factors, and of the hue in turns of the colour circle (its code adds the brightness).
BRIGHTNESS, CONTRAST, SATURATION, HUE = (0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.2, 0.2)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def crop_corner(image: Tensor, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Left and top corner of a crop of frames [B, 3, H, W], px, int64 [B, 2]: at the centre, or at random with a
    generator. The generator lives on the CPU, so that no step waits for a device to learn the corner."""
    batch, _, height, width = image.shape
    centre = _centre(image, size)
    if generator is None:
        return torch.tensor([centre]).expand(batch, 2)
    room = torch.tensor([width - size + 1, height - size + 1])
    return (torch.rand(batch, 2, generator=generator) * room).long()


def _centre(image: Tensor, size: int) -> tuple[int, int]:
    """Left and top corner of the crop at the centre."""
    height, width = image.shape[-2:]
    if height < size or width < size:
        raise ValueError(f"frames of {height}x{width} px cannot be cropped to {size}")
    return (width - size) // 2, (height - size) // 2


def crop(image: Tensor, size: int, corner: Tensor | None = None) -> Tensor:
    """Crop frames uint8 [B, 3, H, W] to float [B, 3, size, size] in [0, 1], at `corner` [B, 2] or at the centre."""
    if corner is None:
        left, top = _centre(image, size)
        out = image[:, :, top : top + size, left : left + size]
    else:
        every = image.unfold(2, size, 1).unfold(3, size, 1)  # a view of all crops
        out = every[torch.arange(len(image), device=image.device), :, corner[:, 1], corner[:, 0]]
    return out.to(torch.float32).div_(255.0).contiguous(memory_format=torch.channels_last)


def in_crop(point: Tensor, image: Tensor, corner: Tensor, size: int) -> Tensor:
    """Points [B, P, 2] in units of the frame's side -> in units of the side of the crop of `size` px at `corner`."""
    return (point * image.shape[-1] - corner[:, None]) / size


def change_colours(image: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Images [B, 3, H, W] with all colours multiplied by `brightness` [B], moved from the mean luma by the factor
    `contrast`, from their own luma by `saturation`, and turned about the grey axis by `hue` turns, then clipped.

    All four are affine, so one 3 x 3 matrix per image does them; a hue in HSV, of every pixel, takes ten times as long.
    """
    luma, cross = _colour_constants(image.device)
    one, ones = torch.eye(3, device=image.device), torch.ones(3, 3, device=image.device)
    kept, cosine, sine = (x[:, None, None] for x in (saturation, (2 * math.pi * hue).cos(), (2 * math.pi * hue).sin()))
    saturate = kept * one + (1 - kept) * luma.expand(3, 3)
    turn = cosine * one + (1 - cosine) / 3 * ones + sine / math.sqrt(3) * cross  # Rodrigues
    offset = brightness * (1 - contrast) * (image.mean((2, 3)) * luma).sum(1)  # a grey: the others do not change it
    pixels = image.permute(0, 2, 3, 1).flatten(1, 2)  # [B, H * W, 3], a view where channels are last
    with torch.autocast(image.device.type, enabled=False):  # bfloat16 has fewer bits than an image
        matrix = (brightness * contrast)[:, None, None] * (turn @ saturate)
        out = torch.baddbmm(offset[:, None, None].expand(-1, 1, 3), pixels, matrix.transpose(1, 2)).clamp_(0, 1)
    return out.unflatten(1, image.shape[2:]).permute(0, 3, 1, 2)


@functools.cache
def _colour_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Luma [3], and the cross product with the grey axis times the square root of 3, [3, 3]."""
    cross = [[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]
    return torch.tensor(LUMA, device=device), torch.tensor(cross, device=device)


@dataclass(frozen=True)
class Augmentation:
    """How the images of a batch are changed: `corner` of their crops, int64 [B, 2], and `factors` [B, 4] of brightness,
    contrast, saturation and hue; None: colours stay."""

    corner: Tensor
    factors: Tensor | None = None

    @classmethod
    def draw(cls, frames: Tensor, size: int, seed: int, random_crop: bool, vary_colours: bool) -> Augmentation:
        """For frames [B, 3, H, H] cropped to `size` px, on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        corner = crop_corner(frames, size, generator if random_crop else None)
        if not vary_colours:
            return cls(corner)
        low, high = torch.tensor([BRIGHTNESS, CONTRAST, SATURATION, HUE]).T
        return cls(corner, low + (high - low) * torch.rand(len(frames), 4, generator=generator))

    def apply(self, frames: Tensor, size: int) -> Tensor:
        """Training images float [B, 3, size, size] of frames uint8 [B, 3, H, H]."""
        image = crop(frames, size, self.corner)
        return image if self.factors is None else change_colours(image, *self.factors.T)
