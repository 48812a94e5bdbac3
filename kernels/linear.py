"""Sparse fully connected layers: y = activation(x W^T + bias + residual), W in sliced ELL.

Batch 1 is bound by the bytes of the weights: one program reads two rows as long contiguous runs and
gathers x from cache. Larger batches gather, for each weight, one contiguous run of a batch-innermost x.
"""

from __future__ import annotations

import triton
import triton.language as tl
from finepruning.kernels.common import activate, next_power_of_2
from finepruning.kernels.sliced_ell import SLICE_ROWS, SlicedEll
from torch import Tensor

SPMV_ROWS = 2
SPMV_BLOCK = 512
SPMM_TILE = 2048
MAX_BATCH_TILE = 64


@triton.jit
def spmv_kernel(
    x, values, col, ptr, order, bias, residual, y,
    rows, stride_x, stride_r, stride_y,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    SLICE: tl.constexpr, ROWS: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program computes ROWS consecutive slots of a slice for one input vector."""
    slot = tl.program_id(0) * ROWS
    piece = slot // SLICE
    first = tl.load(ptr + piece)
    width = tl.multiple_of(tl.load(ptr + piece + 1) - first, ALIGN)
    lane = tl.arange(0, ROWS)
    start = tl.multiple_of(first * SLICE, 8) + (slot % SLICE + lane) * width
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    k = 0
    while k < width:
        entry = k + tl.arange(0, BLOCK)[None, :]
        inside = entry < width
        at = start[:, None] + entry
        c = tl.load(col + at, mask=inside, other=0).to(tl.int32)
        v = tl.load(values + at, mask=inside, other=0.0).to(tl.float32)
        total += v * tl.load(x + c * stride_x, mask=inside, other=0.0).to(tl.float32)
        k += BLOCK
    result = tl.sum(total, axis=1)
    valid = slot + lane < rows
    row = tl.load(order + slot + lane, mask=valid, other=0)
    if HAS_BIAS:
        result += tl.load(bias + row, mask=valid, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        result += tl.load(residual + row * stride_r, mask=valid, other=0.0).to(tl.float32)
    tl.store(y + row * stride_y, activate(result, ACTIVATION).to(y.dtype.element_ty), mask=valid)


@triton.jit
def spmm_kernel(
    x, values, col, ptr, order, bias, residual, y,
    stride_xn, stride_rf, stride_rn, stride_yf, stride_yn,
    N: tl.constexpr, stride_xf: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    SLICE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program computes one row for BLOCK_N of N images, BLOCK_K weights at a time.

    N and stride_xf are constants so that the compiler sees whole, aligned runs of images: a mask against a
    batch of 8 that it does not know would split every 16-byte load.
    """
    slot = tl.program_id(0)
    piece = slot // SLICE
    first = tl.load(ptr + piece)
    width = tl.load(ptr + piece + 1) - first
    start = first * SLICE + (slot % SLICE) * width
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    wanted = n < N
    lane = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_K, BLOCK_N], tl.float32)
    k = 0
    while k < width:
        inside = k + lane < width
        c = tl.load(col + start + k + lane, mask=inside, other=0).to(tl.int32)
        v = tl.load(values + start + k + lane, mask=inside, other=0.0).to(tl.float32)
        at = (c * stride_xf)[:, None] + (n * stride_xn)[None, :]
        total += v[:, None] * tl.load(x + at, mask=inside[:, None] & wanted[None, :], other=0.0).to(
            tl.float32
        )
        k += BLOCK_K
    result = tl.sum(total, axis=0)
    row = tl.load(order + slot)
    if HAS_BIAS:
        result += tl.load(bias + row).to(tl.float32)
    if HAS_RESIDUAL:
        result += tl.load(residual + row * stride_rf + n * stride_rn, mask=wanted, other=0.0).to(tl.float32)
    at = row * stride_yf + n * stride_yn
    tl.store(y + at, activate(result, ACTIVATION).to(y.dtype.element_ty), mask=wanted)


def spmv(
    x: Tensor,
    weight: SlicedEll,
    y: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> None:
    """Write ``activation(x W^T + bias + residual)`` of one image to ``y``; sums are float32.

    Args:
        x: ``[1, columns]``, any strides. weight: ``rows x columns``, on the device of ``x``.
        y: ``[1, rows]``, any strides, every element is written. residual: like ``y``.
        bias: ``[rows]``. activation: a name of `common.ACTIVATIONS`.
    """
    extra = x if residual is None else residual
    block = min(SPMV_BLOCK, max(64, next_power_of_2(-(-weight.values.numel() // max(weight.rows, 1)))))
    spmv_kernel[(-(-weight.rows // SPMV_ROWS),)](
        x, weight.values, weight.col, weight.ptr, weight.order, x if bias is None else bias, extra, y,
        weight.rows, x.stride(1), extra.stride(1), y.stride(1),
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, ACTIVATION=activation,
        SLICE=SLICE_ROWS, ROWS=SPMV_ROWS, ALIGN=weight.alignment, BLOCK=block,
    )  # fmt: skip


def spmm(
    x: Tensor,
    weight: SlicedEll,
    y: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> None:
    """Write ``activation(x W^T + bias + residual)`` to ``y``; sums are float32.

    Args:
        x: ``[N, columns]``, any strides; batch-innermost memory is fastest.
        weight: ``rows x columns``, on the device of ``x``.
        y: ``[N, rows]``, any strides, every element is written. residual: like ``y``.
        bias: ``[rows]``. activation: a name of `common.ACTIVATIONS`.
    """
    extra = x if residual is None else residual
    block_n = min(next_power_of_2(x.shape[0]), MAX_BATCH_TILE)
    spmm_kernel[(weight.rows, -(-x.shape[0] // block_n))](
        x, weight.values, weight.col, weight.ptr, weight.order, x if bias is None else bias, extra, y,
        x.stride(0), extra.stride(1), extra.stride(0), y.stride(1), y.stride(0),
        N=x.shape[0], stride_xf=x.stride(1),
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, ACTIVATION=activation,
        SLICE=SLICE_ROWS, BLOCK_K=SPMM_TILE // block_n, BLOCK_N=block_n,
    )  # fmt: skip
