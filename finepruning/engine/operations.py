"""What each operation of a graph means in PyTorch on dense weights: one table for all that run it so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def run_dense(
    op: str,
    attrs: Mapping[str, Any],
    inputs: Sequence[Tensor],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The result of one operation, without what is fused into it; "aten" has `finepruning.sparse.aten`.

    Args:
        op, attrs: as in docs/file-format.md; a view's shape is resolved.
        inputs: as the operation takes them. weight, bias: dense, of convolutions and fully connected layers.

    Raises:
        ValueError: there is no such operation.
    """
    x = inputs[0]
    if op in ("conv2d", "linear"):
        assert weight is not None
        if op == "linear":
            return F.linear(x, weight, bias)
        return F.conv2d(
            x, weight, bias, attrs["stride"], attrs["padding"], attrs["dilation"], attrs["groups"]
        )
    if op == "max_pool2d":
        return F.max_pool2d(
            x, attrs["kernel"], attrs["stride"], attrs["padding"], attrs["dilation"], attrs["ceil_mode"]
        )
    if op == "avg_pool2d":
        return F.avg_pool2d(
            x,
            attrs["kernel"],
            attrs["stride"],
            attrs["padding"],
            attrs["ceil_mode"],
            attrs["count_include_pad"],
            attrs["divisor_override"],
        )
    if op == "adaptive_avg_pool2d":
        return F.adaptive_avg_pool2d(x, attrs["size"])
    if op == "add":
        return x + inputs[1]
    if op == "mul":
        return x * inputs[1]
    if op == "concat":
        return torch.cat(list(inputs), attrs["dim"])
    if op == "view":
        return x.reshape(attrs["shape"])
    if op == "identity":
        return x
    raise ValueError(f"unknown operation {op}")
