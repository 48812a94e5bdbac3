"""Sparse fully connected layers: y = activation(x W^T + bias + residual), W in sliced ELL.

Batch 1 reads weights as long contiguous runs and gathers x, from shared memory or from cache. Larger batches
gather, for each weight, one contiguous run of a batch-innermost x.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from finepruning.kernels.common import (
    PROCESSORS,
    activate,
    await_previous,
    let_next_begin,
    next_power_of_2,
    overlap,
)
from finepruning.kernels.sliced_ell import SLICE_ROWS, SlicedEll
from torch import Tensor

# Beyond this, x in shared memory leaves room for too few programs.
MAX_SHARED_BYTES = 32 << 10
MAX_IMAGES = 64


class SpmvTile(NamedTuple):
    """How `spmv` divides its work.

    Attributes:
        rows: of one program. block: entries of each row read at a time.
        vector: entries a thread reads side by side. Fewer make the lanes' columns lie closer together.
        shared: x is gathered from shared memory, not from cache.
        ahead: the entries of the next turn are read before x of this one.
        stream: weights bypass the first cache. warps: of one program.
    """

    rows: int
    block: int
    vector: int
    shared: bool
    ahead: bool
    stream: bool
    warps: int


class SpmmTile(NamedTuple):
    """How `spmm` divides its work.

    Attributes:
        rows: of one program. entries: of each row at a time. images: of one program.
        vector: entries a thread reads side by side. warps: of one program.
    """

    rows: int
    entries: int
    images: int
    vector: int
    warps: int


@triton.jit
def row_ranges(ptr, slot, slices, SLICE: tl.constexpr, ROWS: tl.constexpr, ALIGN: tl.constexpr):
    """(first entry, entries) of each of ROWS slots from ``slot`` on, and the most entries of any."""
    lane = tl.arange(0, ROWS)
    if ROWS <= SLICE:
        piece = slot // SLICE
        first = tl.load(ptr + piece)
        longest = tl.multiple_of(tl.load(ptr + piece + 1) - first, ALIGN)
        start = tl.multiple_of(first * SLICE, 8) + (slot % SLICE + lane) * longest
        width = tl.full([ROWS], 0, tl.int32) + longest
    else:
        pieces = (slot + lane) // SLICE
        firsts = tl.load(ptr + pieces, mask=pieces < slices, other=0)
        width = tl.load(ptr + pieces + 1, mask=pieces < slices, other=0) - firsts
        start = firsts * SLICE + (slot + lane) % SLICE * width
        # Rows are sorted by length, but only inside windows.
        longest = tl.max(width, axis=0)
    return tl.multiple_of(start, ALIGN), tl.multiple_of(width, ALIGN), longest


@triton.jit
def entries_at(col, values, start, width, k, BLOCK: tl.constexpr, CACHE: tl.constexpr):
    """Columns and values of the BLOCK entries from ``k`` on of each row; 0 and 0 beyond its end."""
    entry = k + tl.arange(0, BLOCK)[None, :]
    inside = entry < width[:, None]
    at = start[:, None] + entry
    c = tl.load(col + at, mask=inside, other=0, cache_modifier=CACHE).to(tl.int32)
    return c, tl.load(values + at, mask=inside, other=0.0, cache_modifier=CACHE)


@triton.jit
def spmv_kernel(
    x, values, col, ptr, order, bias, residual, y,
    rows, columns, stride_x, stride_r, stride_y,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    SLICE: tl.constexpr, ROWS: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
    SHARED: tl.constexpr, AHEAD: tl.constexpr, CACHE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program computes ROWS consecutive slots for one input vector.

    SHARED is 0, or a power of two not below the number of columns: then each turn of the loop keeps x in
    shared memory. Weights and bias, which no launch writes, are read before the wait for the one before.
    """
    slot = tl.program_id(0) * ROWS
    slots = slot + tl.arange(0, ROWS)
    valid = slots < rows
    row = tl.load(order + slots, mask=valid, other=0)
    start, width, longest = row_ranges(ptr, slot, tl.cdiv(rows, SLICE), SLICE, ROWS, ALIGN)
    extra = tl.zeros([ROWS], tl.float32)
    if HAS_BIAS:
        extra += tl.load(bias + row, mask=valid, other=0.0).to(tl.float32)
    c, v = entries_at(col, values, start, width, 0, BLOCK, CACHE)
    await_previous(OVERLAP)
    if HAS_RESIDUAL:
        extra += tl.load(residual + row * stride_r, mask=valid, other=0.0).to(tl.float32)
    if SHARED > 0:
        place = tl.arange(0, SHARED)
        held = tl.load(x + place * stride_x, mask=place < columns, other=0.0)
        # One sum a row leaves the registers to weights; a row has few turns of the loop.
        total = tl.zeros([ROWS], tl.float32)
    else:
        total = tl.zeros([ROWS, BLOCK], tl.float32)
    k = 0
    while k < longest:
        if AHEAD:
            next_c, next_v = entries_at(col, values, start, width, k + BLOCK, BLOCK, CACHE)
        # Outside, as where rows are padded, 0 meets x of column 0: no mask.
        if SHARED > 0:
            gathered = tl.reshape(tl.gather(held, tl.reshape(c, [ROWS * BLOCK]), 0), [ROWS, BLOCK])
            total += tl.sum(v.to(tl.float32) * gathered.to(tl.float32), axis=1)
        else:
            total += v.to(tl.float32) * tl.load(x + c * stride_x).to(tl.float32)
        k += BLOCK
        if AHEAD:
            c = next_c
            v = next_v
        else:
            c, v = entries_at(col, values, start, width, k, BLOCK, CACHE)
    let_next_begin(OVERLAP)
    result = (total if SHARED > 0 else tl.sum(total, axis=1)) + extra
    tl.store(y + row * stride_y, activate(result, ACTIVATION).to(y.dtype.element_ty), mask=valid)


@triton.jit
def spmm_kernel(
    x, values, col, ptr, order, bias, residual, y,
    rows, stride_xn, stride_rf, stride_rn, stride_yf, stride_yn,
    N: tl.constexpr, stride_xf: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    SLICE: tl.constexpr, ALIGN: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program computes ROWS consecutive slots for BLOCK_N of N images, BLOCK_K weights at a time.

    N and stride_xf are constants so that the compiler sees whole, aligned runs of images: a mask against a
    batch of 8 that it does not know would split every 16-byte load.
    """
    slot = tl.program_id(0) * ROWS
    slots = slot + tl.arange(0, ROWS)
    valid = slots < rows
    row = tl.load(order + slots, mask=valid, other=0)
    start, width, longest = row_ranges(ptr, slot, tl.cdiv(rows, SLICE), SLICE, ROWS, ALIGN)
    if HAS_BIAS:
        # Read now, as nothing waits for it.
        extra = tl.load(bias + row, mask=valid, other=0.0).to(tl.float32)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    wanted = n < N
    # Pointers of the images once, then one instruction adds a column: a sum of offsets would take two more.
    images = (x + n * stride_xn)[None, None, :]
    total = tl.zeros([ROWS, BLOCK_K, BLOCK_N], tl.float32)
    c, v = entries_at(col, values, start, width, 0, BLOCK_K, "")
    await_previous(OVERLAP)
    k = 0
    while k < longest:
        # Outside, as where rows are padded, 0 meets x of column 0: only images need a mask, if any.
        if N % BLOCK_N == 0:
            run = tl.load(images + (c * stride_xf)[:, :, None])
        else:
            run = tl.load(images + (c * stride_xf)[:, :, None], mask=wanted[None, None, :], other=0.0)
        weight = v.to(tl.float32)
        # The next weights are on their way while this turn waits for x.
        k += BLOCK_K
        c, v = entries_at(col, values, start, width, k, BLOCK_K, "")
        total += weight[:, :, None] * run.to(tl.float32)
    let_next_begin(OVERLAP)
    result = tl.sum(total, axis=1)
    write = valid[:, None] & wanted[None, :]
    if HAS_BIAS:
        result += extra[:, None]
    if HAS_RESIDUAL:
        at = (row * stride_rf)[:, None] + (n * stride_rn)[None, :]
        result += tl.load(residual + at, mask=write, other=0.0).to(tl.float32)
    at = (row * stride_yf)[:, None] + (n * stride_yn)[None, :]
    tl.store(y + at, activate(result, ACTIVATION).to(y.dtype.element_ty), mask=write)


def mean_width(weight: SlicedEll) -> int:
    """Stored entries of a row, on average and rounded up."""
    return -(-weight.values.numel() // max(weight.rows, 1))


def spmv_tile(weight: SlicedEll) -> SpmvTile:
    """The tile for a weight."""
    width = mean_width(weight)
    # A row in one turn of the loop; shorter turns fit better where it takes several anyway.
    block = 512 if width > 1024 else max(64, next_power_of_2(width))
    x_bytes = next_power_of_2(weight.columns) * weight.values.element_size()
    rows = 8192 // block
    if x_bytes <= MAX_SHARED_BYTES and weight.rows >= rows * PROCESSORS:
        return SpmvTile(rows, block, 8, True, width > block, True, 16)
    # Lanes beside each other take entries beside each other, whose columns share a few lines of cache.
    return SpmvTile(1, block, 1, False, width > block, True, max(1, block // 256))


def spmm_tile(weight: SlicedEll, batch: int) -> SpmmTile:
    """The tile for a weight and a number of images, as measured on an H200: one warp adds by itself."""
    images = min(next_power_of_2(batch), MAX_IMAGES)
    width = max(32, next_power_of_2(mean_width(weight)))
    if images > 8:
        return SpmmTile(1, min(2048 // images, width), images, 1, 1)
    if weight.values.element_size() == 2:
        return SpmmTile(2, min(1024 // images, 512, width), images, 1, 1)
    return SpmmTile(1, min(2048 // images, 512, width), images, 1, 4)


def _vector(wanted: int, weight: SlicedEll) -> int:
    return wanted if weight.alignment % wanted == 0 else 1


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
        x: ``[1, columns]``, any strides. Its first feature must be finite: padded entries multiply it by 0.
        weight: ``rows x columns``, on the device of ``x``.
        y: ``[1, rows]``, any strides, every element is written. residual: like ``y``.
        bias: ``[rows]``. activation: a name of `common.ACTIVATIONS`.
    """
    extra = x if residual is None else residual
    tile = spmv_tile(weight)
    spmv_kernel[(-(-weight.rows // tile.rows),)](
        x, weight.values, weight.col, weight.ptr, weight.order, x if bias is None else bias, extra, y,
        weight.rows, weight.columns, x.stride(1), extra.stride(1), y.stride(1),
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, ACTIVATION=activation,
        SLICE=SLICE_ROWS, ROWS=tile.rows, ALIGN=_vector(tile.vector, weight), BLOCK=tile.block,
        SHARED=next_power_of_2(weight.columns) if tile.shared else 0, AHEAD=tile.ahead,
        CACHE=".cg" if tile.stream else "", num_warps=tile.warps, **overlap(),
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
        x: ``[N, columns]``, any strides; batch-innermost memory is fastest. First features must be finite:
            padded entries multiply them by 0.
        weight: ``rows x columns``, on the device of ``x``.
        y: ``[N, rows]``, any strides, every element is written. residual: like ``y``.
        bias: ``[rows]``. activation: a name of `common.ACTIVATIONS`.
    """
    extra = x if residual is None else residual
    tile = spmm_tile(weight, x.shape[0])
    spmm_kernel[(-(-weight.rows // tile.rows), -(-x.shape[0] // tile.images))](
        x, weight.values, weight.col, weight.ptr, weight.order, x if bias is None else bias, extra, y,
        weight.rows, x.stride(0), extra.stride(1), extra.stride(0), y.stride(1), y.stride(0),
        N=x.shape[0], stride_xf=x.stride(1),
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, ACTIVATION=activation,
        SLICE=SLICE_ROWS, ALIGN=_vector(tile.vector, weight),
        ROWS=tile.rows, BLOCK_K=tile.entries, BLOCK_N=tile.images, num_warps=tile.warps, **overlap(),
    )  # fmt: skip
