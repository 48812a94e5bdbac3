"""The obvious version of every kernel, in plain PyTorch on dense float32 tensors: what tests compare with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from finepruning.kernels.sliced_ell import SLICE_ROWS, SlicedEll
from torch import Tensor


def dense_matrix(weight: SlicedEll) -> Tensor:
    """``[rows, columns]`` float32, entry by entry."""
    dense = torch.zeros(weight.rows, weight.columns)
    ptr, order = weight.ptr.tolist(), weight.order.tolist()
    col, values = weight.col.to(torch.int64).tolist(), weight.values.float().tolist()
    for slot, row in enumerate(order):
        piece = slot // SLICE_ROWS
        width = ptr[piece + 1] - ptr[piece]
        start = ptr[piece] * SLICE_ROWS + (slot % SLICE_ROWS) * width
        for entry in range(start, start + width):
            dense[row, col[entry]] += values[entry]
    return dense


def activate(x: Tensor, activation: str | None) -> Tensor:
    """``x`` through an activation of `common.ACTIVATIONS`."""
    functions = {
        None: lambda t: t,
        "relu": F.relu,
        "relu6": F.relu6,
        "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid,
        "silu": F.silu,
        "sigmoid": torch.sigmoid,
        "gelu": F.gelu,
    }
    result: Tensor = functions[activation](x)
    return result


def finish(x: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str | None) -> Tensor:
    """Bias per channel (dimension 1), residual, activation: the common end of every kernel."""
    if bias is not None:
        x = x + bias.float().reshape(1, -1, *[1] * (x.dim() - 2))
    if residual is not None:
        x = x + residual.float()
    return activate(x, activation)


def linear(x: Tensor, weight: SlicedEll) -> Tensor:
    """``x W^T``, ``[N, rows]`` float32."""
    return x.float() @ dense_matrix(weight).t()


def conv2d(
    x: Tensor,
    weight: SlicedEll,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """The convolution of ``x`` with the dense weight, float32."""
    dense = dense_matrix(weight).reshape(weight.rows, -1, *kernel)
    return F.conv2d(x.float(), dense, None, stride, padding, dilation, groups)
