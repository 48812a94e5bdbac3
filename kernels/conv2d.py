"""Direct sparse convolution over batch-innermost maps, weight in sliced ELL.

One program computes runs of output pixels (times images) of one or a few output channels. Each stored
weight is one scalar and one offset into the input, whose zero border makes bounds tests unnecessary: the
offset precomputation of SkimCaffe (Park et al., ICLR 2017) done in registers, so that one packed weight
serves every input size and takes two bytes of position. `conv2d_tile` chooses what a program computes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from finepruning.kernels.common import (
    activate,
    await_previous,
    clear_halo,
    halo_elements,
    let_next_begin,
    needs_64_bits,
    overlap,
    strides_in_units,
)
from finepruning.kernels.conv2d_tile import run_length, tile_shape
from finepruning.kernels.sliced_ell import SLICE_ROWS, SlicedEll
from torch import Tensor

BORDER = 256


@triton.jit
def sparse_conv2d_kernel(
    x, values, col, ptr, order, bias, residual, y,
    rows, rows_per_group, channels_per_group, out_h, out_w, halo, programs,
    xc, xh, xw, xn, step_h, step_w, origin, by_channel, by_row, by_tap,
    rc, rh, rw, rn, yc, yh, yw, yn,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    N: tl.constexpr, X_UNIT: tl.constexpr, Y_UNIT: tl.constexpr, R_UNIT: tl.constexpr,
    KW: tl.constexpr, KHW: tl.constexpr, GROUPED: tl.constexpr, CLEAR: tl.constexpr, WIDE: tl.constexpr,
    SLICE: tl.constexpr, RUNS: tl.constexpr, ROWS: tl.constexpr, SPLIT: tl.constexpr, RUN: tl.constexpr,
    BORDER: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """A tile is [RUNS, ROWS * SPLIT, RUN]: runs of outputs, (row, share of its weights), outputs of a run.

    The compiler lays lanes along the last dimension, warps along the middle one and registers along the
    first. A thread therefore decodes one weight for RUNS runs at once, and reads it from one address as the
    rest of its warp does. The shares of a row are added at the end.

    x*, r*, y*: strides of input, residual and output in (channel, row, column, image).
    step_*: distance in the input between neighbouring outputs (stride); origin: of the first tap of output
    (0, 0), negative with padding. by_*: what one more in the column's channel, tap row and column adds to
    its input offset, each less what the finer ones have added already. All of these but the image strides
    count units of *_UNIT elements, which tells the compiler how wide it may load and store.
    WIDE: offsets need 64 bits. The grid has one dimension (others end at 65535), rows fastest: programs
    that run together read the same input.
    """
    pid = tl.program_id(0)
    if CLEAR:  # noqa: SIM102 - known at compile time, unlike the inner test
        if pid >= programs:
            await_previous(OVERLAP)
            plane = (pid - programs) % rows
            if WIDE:
                plane = plane.to(tl.int64)
            clear_halo(
                y + plane * yc * Y_UNIT,
                (pid - programs) // rows * BORDER,
                out_h,
                out_w,
                halo,
                yh * Y_UNIT,
                yw * Y_UNIT,
                yn,
                N,
                BORDER,
            )
            return
    blocks = (rows + ROWS - 1) // ROWS
    slot = pid % blocks * ROWS
    tile = pid // blocks
    piece = slot // SLICE
    first = tl.load(ptr + piece)
    width = tl.load(ptr + piece + 1) - first

    # An output beyond the last pixel reads pixel 0: no load in the loop needs a mask.
    element = tl.arange(0, RUNS)[:, None] * RUN + tl.arange(0, RUN)[None, :]
    if WIDE:
        element = tile.to(tl.int64) * (RUNS * RUN) + element
    else:
        element = tile * (RUNS * RUN) + element
    n = element % N
    pixel = element // N
    wanted = pixel < out_h * out_w
    pixel = tl.where(wanted, pixel, 0)
    oy = pixel // out_w
    ox = pixel % out_w
    here = (x + origin * X_UNIT) + ((oy * step_h + ox * step_w) * X_UNIT + n * xn)

    lane = tl.arange(0, ROWS * SPLIT)
    share = lane % SPLIT
    # Only scalars change in the loop: pointers carried as tensors would pass through shared memory.
    at = (lane // SPLIT) * width + share
    col += first * SLICE + slot % SLICE * width
    values += first * SLICE + slot % SLICE * width
    if GROUPED:
        channel = tl.load(order + tl.minimum(slot + lane // SPLIT, rows - 1)) // rows_per_group
        if WIDE:
            channel = channel.to(tl.int64)
        group = channel * channels_per_group * xc
    total = tl.zeros([RUNS, ROWS * SPLIT, RUN], tl.float32)
    left = width
    await_previous(OVERLAP)
    while left > 0:
        inside = share < left
        c = tl.load(col + at, mask=inside, other=0).to(tl.int32)
        v = tl.load(values + at, mask=inside, other=0.0).to(tl.float32)
        if WIDE:
            c = c.to(tl.int64)
        offset = c * by_tap
        if KHW > KW:
            offset += (c // KW) * by_row
        if KHW > 1:
            offset += (c // KHW) * by_channel
        if GROUPED:
            offset += group
        read = tl.load(here[:, None, :] + offset[None, :, None] * X_UNIT)
        total += v[None, :, None] * read.to(tl.float32)
        left -= SPLIT
        col += SPLIT
        values += SPLIT

    result = tl.sum(tl.reshape(total, [RUNS, ROWS, SPLIT, RUN]), axis=2)
    let_next_begin(OVERLAP)
    slots = slot + tl.arange(0, ROWS)
    row = tl.load(order + slots, mask=slots < rows, other=0)
    if WIDE:
        row = row.to(tl.int64)
    if HAS_BIAS:
        result += tl.load(bias + row).to(tl.float32)[None, :, None]
    stored = wanted[:, None, :] & (slots < rows)[None, :, None]
    if HAS_RESIDUAL:
        at = ((oy * rh + ox * rw) * R_UNIT + n * rn)[:, None, :] + (row * rc * R_UNIT)[None, :, None]
        result += tl.load(residual + at, mask=stored, other=0.0).to(tl.float32)
    at = ((oy * yh + ox * yw) * Y_UNIT + n * yn)[:, None, :] + (row * yc * Y_UNIT)[None, :, None]
    tl.store(y + at, activate(result, ACTIVATION).to(y.dtype.element_ty), mask=stored)


def sparse_conv2d(
    x: Tensor,
    weight: SlicedEll,
    y: Tensor,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    halo: int = 0,
) -> None:
    """Write ``activation(conv2d(x, W) + bias + residual)`` to ``y``; sums are float32.

    Args:
        x: ``[N, C, H, W]``, any strides, inside memory that has zeros for ``padding`` pixels around each
            map (`layout.empty` with a halo that a kernel has cleared).
        weight: ``OC x (C / groups * kh * kw)``. y: ``[N, OC, OH, OW]``, any strides; all of it is written.
        bias: ``[OC]``. residual: like ``y``. activation: a name of `common.ACTIVATIONS`.
        halo: width of the border around ``y`` to fill with zeros.
    """
    batch, channels = x.shape[:2]
    out_h, out_w = y.shape[2:]
    extra = y if residual is None else residual
    (xc, xh, xw, xn), x_unit = strides_in_units(x)
    r_strides, r_unit = strides_in_units(extra)
    y_strides, y_unit = strides_in_units(y)
    outputs = out_h * out_w * batch
    taps_h, taps_w = kernel
    shape = tile_shape(weight.rows, weight.values.numel(), outputs, run_length(x), x.dtype.itemsize)
    tiles = -(-outputs // (shape.runs * shape.run))
    programs = -(-weight.rows // shape.rows) * tiles
    border = -(-halo_elements(out_h, out_w, halo, batch) // BORDER)
    sparse_conv2d_kernel[(programs + weight.rows * border,)](
        x, weight.values, weight.col, weight.ptr, weight.order, x if bias is None else bias, extra, y,
        weight.rows, weight.rows // groups, channels // groups, out_h, out_w, halo, programs,
        xc, xh, xw, xn, stride[0] * xh, stride[1] * xw, -(padding[0] * xh + padding[1] * xw),
        *column_steps(xc, dilation[0] * xh, dilation[1] * xw, kernel), *r_strides, *y_strides,
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, ACTIVATION=activation,
        N=batch, X_UNIT=x_unit, Y_UNIT=y_unit, R_UNIT=r_unit,
        KW=taps_w, KHW=taps_h * taps_w, GROUPED=groups > 1, CLEAR=halo > 0,
        WIDE=needs_64_bits(x, y, extra), SLICE=SLICE_ROWS,
        RUNS=shape.runs, ROWS=shape.rows, SPLIT=shape.split, RUN=shape.run,
        BORDER=BORDER, num_warps=shape.warps, **overlap(),
    )  # fmt: skip


def column_steps(channel: int, row: int, tap: int, kernel: tuple[int, int]) -> tuple[int, int, int]:
    """(by_channel, by_row, by_tap): column c lies at c by_tap + (c // kw) by_row + (c // (kh kw)) by_channel.

    Equal to channel * C + row * R + tap * T for the column c of channel C, tap row R and tap T, without the
    remainders of the divisions.
    """
    if kernel == (1, 1):
        return 0, 0, channel
    if kernel[0] == 1:
        return channel - kernel[1] * tap, 0, tap
    return channel - kernel[0] * row, row - kernel[1] * tap, tap
