"""Collectives of distributed training: rows of all processes, in the same order in each."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def rank_and_world_size() -> tuple[int, int]:
    """(this process, how many): (0, 1) where nothing is distributed."""
    if not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def gather(rows: Tensor) -> Tensor:
    """[B, ...] of each process -> [world * B, ...], of process 0 first. No gradient passes. B is the same in all."""
    _, processes = rank_and_world_size()
    if processes == 1:
        return rows
    sent = rows.detach().contiguous()
    everyone = [torch.empty_like(sent) for _ in range(processes)]
    distributed.all_gather(everyone, sent)
    return torch.cat(everyone)


def local_rows(rows: Tensor) -> Tensor:
    """This process's rows among those of all: the inverse of `gather`."""
    rank, processes = rank_and_world_size()
    return rows.chunk(processes)[rank]


def ddp_correction(weight: Tensor) -> Tensor:
    """DDP correction for a mean weighted by `weight` [B]: the local sum of weights over its mean across processes; 1
    with one process."""
    here = weight.sum()
    return here / gather(here[None]).mean().clamp(min=1e-6) if rank_and_world_size()[1] > 1 else torch.ones_like(here)
