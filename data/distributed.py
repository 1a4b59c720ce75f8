"""What the processes of one training have in common: rows of all of them, in the same order everywhere."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def world() -> tuple[int, int]:
    """(this process, how many): (0, 1) where nothing is distributed."""
    if not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def gather(rows: Tensor) -> Tensor:
    """[B, ...] of each process -> [world * B, ...], of process 0 first. No gradient passes. B is the same in all."""
    _, processes = world()
    if processes == 1:
        return rows
    sent = rows.detach().contiguous()
    everyone = [torch.empty_like(sent) for _ in range(processes)]
    distributed.all_gather(everyone, sent)
    return torch.cat(everyone)


def local_rows(rows: Tensor) -> Tensor:
    """What `gather` was given: this process's part of the rows of all."""
    rank, processes = world()
    return rows.chunk(processes)[rank]


def joint_share(weight: Tensor) -> Tensor:
    """What to multiply a loss by that is a mean weighted by `weight` [B], so that the average over processes is the
    weighted mean over the rows of all; 1 with one process."""
    here = weight.sum()
    return here / gather(here[None]).mean().clamp(min=1e-6) if world()[1] > 1 else torch.ones_like(here)
