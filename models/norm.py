"""Batch normalisation synchronised over the processes of a training, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class Blocks(nn.Sequential):
    """Sequential layers. Without gradients, batch normalisation is folded into the convolution before it, which saves a
    pass over the map."""

    def forward(self, x: Tensor) -> Tensor:
        folded, modules = False, list(self)
        for module, following in zip(modules, [*modules[1:], None], strict=True):
            if folded:
                folded = False
            elif isinstance(module, nn.Conv2d) and isinstance(following, BatchNorm) and following.is_fixed:
                weight, bias = fold(module, following)
                x, folded = module._conv_forward(x, weight, bias), True
            else:
                x = module(x)
        return x


def fold(conv: nn.Conv2d, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution with the batch normalisation folded in, by its running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


class _Sum(torch.autograd.Function):
    """Sum over all processes, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation of [B, C, ...] over all dimensions but C, synchronised over processes that have B rows each;
    `torch.nn.SyncBatchNorm` runs on GPUs only. With one process it is PyTorch's own."""

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected [B, C, ...], got {list(x.shape)}")

    @property
    def is_fixed(self) -> bool:
        """Whether it is a fixed affine map: in evaluation mode, and without gradients."""
        return not self.training and not torch.is_grad_enabled()

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return super().forward(x)
        processes = distributed.get_world_size()
        dims = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = _Sum.apply(exact.mean(dims)) / processes
        centred = exact - mean.view(shape)
        variance = _Sum.apply(centred.square().mean(dims)) / processes
        count = processes * x.numel() // x.shape[1]
        with torch.no_grad():
            for running, new in ((self.running_mean, mean), (self.running_var, variance * count / (count - 1))):
                assert running is not None
                running.lerp_(new, self.momentum or 0.0)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return torch.addcmul(self.bias.view(shape), centred, scale.view(shape)).to(x.dtype)
