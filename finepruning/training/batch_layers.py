"""Layers that look at a whole batch while they train, where a batch is spread over processes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


@contextmanager
def batch_layers(module: nn.Module, rank: int, count: int) -> Iterator[None]:
    """Inside, BatchNorm layers in training use the statistics of all ranks' images, and dropout layers draw
    for the whole batch and use their share. Random numbers that a network draws elsewhere (stochastic depth,
    attention) are the same on every rank, if they are seeded alike.
    """
    changed: list[nn.Module] = []
    try:
        for layer in module.modules():
            forward: Any
            if isinstance(layer, _BatchNorm) and layer.training:
                forward = functools.partial(_normalize, layer)
            elif isinstance(layer, _DropoutNd) and layer.training and layer.p > 0:
                forward = functools.partial(_drop, layer, rank, count)
            else:
                continue
            layer.__dict__["forward"] = forward
            changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.__dict__["forward"]


class _Sum(torch.autograd.Function):
    """Sum over all ranks; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _sum(value: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(value.contiguous())
    return total


def _normalize(norm: _BatchNorm, x: Tensor) -> Tensor:
    """[b, c, ...] -> the same shape, by mean and variance over the images of all ranks."""
    axes = [0, *range(2, x.dim())]
    shape = [1, -1] + [1] * (x.dim() - 2)
    values = x.float()
    count = values.new_tensor([values.numel() / values.shape[1]])
    sums = _sum(torch.cat([values.sum(axes), count]))
    total = sums[-1].detach()
    mean = sums[:-1] / total
    centered = values - mean.view(shape)
    variance = _sum(centered.square().sum(axes)) / total
    _remember(norm, mean.detach(), variance.detach() * total / (total - 1).clamp(min=1))
    y = centered * (variance + norm.eps).rsqrt().view(shape)
    if norm.weight is not None:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)


@torch.no_grad()
def _remember(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)


def _drop(layer: _DropoutNd, rank: int, count: int, x: Tensor) -> Tensor:
    """Dropout with this rank's share of a mask drawn for the whole batch, as one process would draw it."""
    whole = torch.ones_like(x, requires_grad=False)
    whole = torch.cat([whole] * count).requires_grad_(x.requires_grad)
    draw = {nn.Dropout1d: F.dropout1d, nn.Dropout2d: F.dropout2d, nn.Dropout3d: F.dropout3d}.get(
        type(layer), F.dropout
    )
    mask = draw(whole, layer.p, True).detach()
    return x * mask[rank * len(x) : (rank + 1) * len(x)]
