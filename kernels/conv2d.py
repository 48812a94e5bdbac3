"""Direct sparse convolution over batch-innermost maps, weight in sliced ELL.

One program computes a run of output pixels (times images) of one output channel. Each stored weight is
one scalar and one offset into the input, whose zero border makes bounds tests unnecessary: the offset
precomputation of SkimCaffe (Park et al., ICLR 2017) done in registers, so that one packed weight serves
every input size.
"""

from __future__ import annotations

import triton
import triton.language as tl
from finepruning.kernels.common import (
    activate,
    clear_halo,
    halo_elements,
    needs_64_bits,
    next_power_of_2,
    strides_in_units,
)
from finepruning.kernels.sliced_ell import SLICE_ROWS, SlicedEll
from torch import Tensor

# Elements of one program's tile (weights x outputs): 16 float32 sums in each of 128 threads.
TILE = 2048
MIN_PROGRAMS = 512


@triton.jit
def sparse_conv2d_kernel(
    x, values, col, ptr, order, bias, residual, y,
    rows, rows_per_group, channels_per_group, out_h, out_w, halo, tiles,
    xc, xh, xw, xn, step_h, step_w, tap_h, tap_w, origin,
    rc, rh, rw, rn, yc, yh, yw, yn,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    N: tl.constexpr, X_UNIT: tl.constexpr, Y_UNIT: tl.constexpr, R_UNIT: tl.constexpr,
    KW: tl.constexpr, KHW: tl.constexpr, CLEAR: tl.constexpr, WIDE: tl.constexpr,
    SLICE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """x*, r*, y*: strides of input, residual and output in (channel, row, column, image).

    step_*: distance in the input between neighbouring outputs (stride); tap_*: between neighbouring taps
    (dilation); origin: of the first tap of output (0, 0), negative with padding. All of these but the
    image strides count units of *_UNIT elements, which tells the compiler how wide it may load and store.
    WIDE: offsets need 64 bits. The grid has one dimension (others end at 65535), rows fastest: programs
    that run together read the same input.
    """
    slot = tl.program_id(0) % rows
    tile = tl.program_id(0) // rows
    row = tl.load(order + slot)
    if WIDE:
        row = row.to(tl.int64)
    if CLEAR:  # noqa: SIM102 - known at compile time, unlike the inner test
        if tile >= tiles:
            clear_halo(
                y + row * yc * Y_UNIT,
                (tile - tiles) * BLOCK_P,
                out_h,
                out_w,
                halo,
                yh * Y_UNIT,
                yw * Y_UNIT,
                yn,
                N,
                BLOCK_P,
            )
            return
    piece = slot // SLICE
    first = tl.load(ptr + piece)
    width = tl.load(ptr + piece + 1) - first
    start = first * SLICE + (slot % SLICE) * width

    element = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    if WIDE:
        element = tile.to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    wanted = element < out_h * out_w * N
    n = element % N
    pixel = element // N
    oy = pixel // out_w
    ox = pixel % out_w
    base = x + ((row // rows_per_group) * channels_per_group * xc + origin) * X_UNIT
    here = (oy * step_h + ox * step_w) * X_UNIT + n * xn

    lane = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_K, BLOCK_P], tl.float32)
    k = 0
    while k < width:
        inside = k + lane < width
        c = tl.load(col + start + k + lane, mask=inside, other=0).to(tl.int32)
        v = tl.load(values + start + k + lane, mask=inside, other=0.0).to(tl.float32)
        if WIDE:
            c = c.to(tl.int64)
        tap = c % KHW
        offset = ((c // KHW) * xc + (tap // KW) * tap_h + (tap % KW) * tap_w) * X_UNIT
        mask = inside[:, None] & wanted[None, :]
        total += v[:, None] * tl.load(base + offset[:, None] + here[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
        k += BLOCK_K
    result = tl.sum(total, axis=0)
    if HAS_BIAS:
        result += tl.load(bias + row).to(tl.float32)
    if HAS_RESIDUAL:
        at = (row * rc + oy * rh + ox * rw) * R_UNIT + n * rn
        result += tl.load(residual + at, mask=wanted, other=0.0).to(tl.float32)
    at = (row * yc + oy * yh + ox * yw) * Y_UNIT + n * yn
    tl.store(y + at, activate(result, ACTIVATION).to(y.dtype.element_ty), mask=wanted)


def tile_shape(rows: int, outputs: int) -> tuple[int, int]:
    """(weights, outputs) of one program: long runs of outputs, but enough programs to fill the device."""
    block = min(next_power_of_2(outputs), 512)
    while block > 64 and rows * -(-outputs // block) < MIN_PROGRAMS:
        block //= 2
    return min(TILE // block, 128), block


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
    block_k, block_p = tile_shape(weight.rows, outputs)
    tiles = -(-outputs // block_p)
    border = -(-halo_elements(out_h, out_w, halo, batch) // block_p)
    sparse_conv2d_kernel[(weight.rows * (tiles + border),)](
        x, weight.values, weight.col, weight.ptr, weight.order, x if bias is None else bias, extra, y,
        weight.rows, weight.rows // groups, channels // groups, out_h, out_w, halo, tiles,
        xc, xh, xw, xn, stride[0] * xh, stride[1] * xw, dilation[0] * xh, dilation[1] * xw,
        -(padding[0] * xh + padding[1] * xw), *r_strides, *y_strides,
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, ACTIVATION=activation,
        N=batch, X_UNIT=x_unit, Y_UNIT=y_unit, R_UNIT=r_unit,
        KW=kernel[1], KHW=kernel[0] * kernel[1], CLEAR=halo > 0, WIDE=needs_64_bits(x, y, extra),
        SLICE=SLICE_ROWS, BLOCK_K=block_k, BLOCK_P=block_p,
    )  # fmt: skip
