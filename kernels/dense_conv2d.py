"""Convolution with a dense weight on tensor cores, bias, residual and activation in the same launch.

For layers whose CSR weight was expanded just in time, and for those kept dense: an implicit matrix product
over channels-last maps (rows of the weight x pixels, summed over taps and channels). With few pixels, single
images above all, the sum is cut into shares for several programs; the last to finish adds them up.
`dense_tile` chooses what a program computes.
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
    overlap,
    strides_chwn,
)
from finepruning.kernels.dense_tile import DenseTile, dense_tile
from torch import Tensor

BORDER = 256


@triton.jit
def dense_conv2d_kernel(
    x, weight, bias, residual, y, partial, arrived,
    rows, pixels, H, W, out_h, out_w, halo, programs, N,
    xn, xh, xw, rc, rh, rw, rn, yc, yh, yw, yn,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    C: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr, BOUNDS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    CLEAR: tl.constexpr, ROWS: tl.constexpr, PIXELS: tl.constexpr, DEPTH: tl.constexpr,
    TURNS: tl.constexpr, SHARES: tl.constexpr, BORDER: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program sums TURNS * DEPTH products (tap, channel) for ROWS channels of PIXELS output pixels.

    weight: [rows, TAPS * C], channels innermost. x*, r*, y*: strides; those of x's channels are 1.
    partial: float32, a tile for each program, and arrived: zeros, one for each tile of the output; both are
    used with SHARES > 1 only. BOUNDS: taps may lie outside the map. The grid has one dimension, shares
    fastest, then rows: programs that run together read the same input.
    """
    pid = tl.program_id(0)
    if CLEAR:  # noqa: SIM102 - known at compile time, unlike the inner test
        if pid >= programs:
            await_previous(OVERLAP)
            plane = (pid - programs) % (rows * N)
            clear_halo(
                y + (plane // N) * yc + (plane % N) * yn,
                (pid - programs) // (rows * N) * BORDER,
                out_h, out_w, halo, yh, yw, 0, 1, BORDER,
            )  # fmt: skip
            return
    share = pid % SHARES
    tile = pid // SHARES
    blocks = (rows + ROWS - 1) // ROWS
    row = tile % blocks * ROWS + tl.arange(0, ROWS)
    pixel = tile // blocks * PIXELS + tl.arange(0, PIXELS)
    wanted = pixel < pixels
    n = pixel // (out_h * out_w)
    oy = pixel // out_w % out_h
    ox = pixel % out_w
    top = oy * stride_h - pad_h
    left = ox * stride_w - pad_w
    here = x + (n * xn + top * xh + left * xw)
    lane = tl.arange(0, DEPTH)
    filters = weight + row * (TAPS * C)
    total = tl.zeros([ROWS, PIXELS], tl.float32)
    await_previous(OVERLAP)
    for turn in range(TURNS):
        first = (share * TURNS + turn) * DEPTH
        k = first + lane
        if C % DEPTH == 0:
            # One tap for the whole turn. Told that a row of channels is aligned, the compiler copies it to
            # shared memory turns ahead, 16 bytes at a time; otherwise it loads at once, by twos.
            tap = first // C
            channel = tl.multiple_of(first % C, DEPTH) + lane
        else:
            tap = k // C
            channel = k % C
        dy = tap // KW * dilation_h
        dx = tap % KW * dilation_w
        inside = wanted[None, :]
        if TAPS * C % (DEPTH * TURNS * SHARES) != 0:
            inside &= (k < TAPS * C)[:, None]
        if BOUNDS:
            if C % DEPTH == 0:
                inside &= ((top + dy >= 0) & (top + dy < H) & (left + dx >= 0) & (left + dx < W))[None, :]
            else:
                down = top[None, :] + dy[:, None]
                across = left[None, :] + dx[:, None]
                inside &= (down >= 0) & (down < H) & (across >= 0) & (across < W)
        at = dy * xh + dx * xw + channel
        read = tl.load(here[None, :] + at[:, None], mask=inside, other=0.0)
        stored = (row < rows)[:, None]
        if TAPS * C % (DEPTH * TURNS * SHARES) != 0:
            stored &= (k < TAPS * C)[None, :]
        w = tl.load(filters[:, None] + k[None, :], mask=stored, other=0.0)
        total = tl.dot(w, read, total, input_precision="tf32")
    let_next_begin(OVERLAP)

    if SHARES > 1:
        inner = tl.arange(0, ROWS)[:, None] * PIXELS + tl.arange(0, PIXELS)[None, :]
        sums = partial + tile * (SHARES * ROWS * PIXELS) + inner
        tl.store(sums + share * (ROWS * PIXELS), total)
        # All threads have stored before one of them says so; whoever sees the last arrival sees all sums.
        tl.debug_barrier()
        before = tl.atomic_add(arrived + tile, 1, sem="acq_rel")
        if before < SHARES - 1:
            return
        total = tl.zeros([ROWS, PIXELS], tl.float32)
        for i in range(SHARES):
            total += tl.load(sums + i * (ROWS * PIXELS), cache_modifier=".cg")
        tl.store(arrived + tile, 0)

    stored = (row < rows)[:, None] & wanted[None, :]
    if HAS_BIAS:
        total += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    if HAS_RESIDUAL:
        at = (row * rc)[:, None] + (n * rn + oy * rh + ox * rw)[None, :]
        total += tl.load(residual + at, mask=stored, other=0.0).to(tl.float32)
    at = (row * yc)[:, None] + (n * yn + oy * yh + ox * yw)[None, :]
    tl.store(y + at, activate(total, ACTIVATION).to(y.dtype.element_ty), mask=stored)


def dense_conv2d(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    partial: Tensor,
    arrived: Tensor,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    halo: int = 0,
    tile: DenseTile | None = None,
) -> None:
    """Write ``activation(conv2d(x, W) + bias + residual)`` to ``y``; sums are float32, operands at most TF32.

    Args:
        x: ``[N, C, H, W]``, channels innermost (stride 1); needs no border. Offsets into it, into ``y`` and
            ``residual`` must fit 32 bits.
        weight: ``[OC, kh * kw * C]`` contiguous, channels innermost.
        y: ``[N, OC, OH, OW]``, any strides; all of it is written. residual: like ``y``.
        partial: float32, ``tile.partial`` elements or more; arrived: int32 zeros, ``tile.tiles`` or more,
            left as zeros. Both may be shared by launches that run one after the other.
        bias: ``[OC]``. activation: a name of `common.ACTIVATIONS`.
        halo: width of the border around ``y`` to fill with zeros.
        tile: None for the one of `tile_of`.
    """
    tile = tile_of(x, weight, y) if tile is None else tile
    batch, channels, height, width = x.shape
    rows = y.shape[1]
    out_h, out_w = y.shape[2:]
    extra = y if residual is None else residual
    rc, rh, rw, rn = strides_chwn(extra)
    yc, yh, yw, yn = strides_chwn(y)
    programs = tile.tiles * tile.shares
    border = -(-halo_elements(out_h, out_w, halo, 1) // BORDER)
    dense_conv2d_kernel[(programs + rows * batch * border,)](
        x, weight, x if bias is None else bias, extra, y, partial, arrived,
        rows, batch * out_h * out_w, height, width, out_h, out_w, halo, programs, batch,
        x.stride(0), x.stride(2), x.stride(3), rc, rh, rw, rn, yc, yh, yw, yn, *stride, *padding, *dilation,
        C=channels, KW=kernel[1], TAPS=kernel[0] * kernel[1], BOUNDS=max(padding) > 0,
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, ACTIVATION=activation,
        CLEAR=halo > 0,
        ROWS=tile.rows, PIXELS=tile.pixels, DEPTH=tile.depth, TURNS=tile.turns, SHARES=tile.shares,
        BORDER=BORDER, num_warps=tile.warps, num_stages=tile.stages, **overlap(),
    )  # fmt: skip


def tile_of(x: Tensor, weight: Tensor, y: Tensor) -> DenseTile:
    """The tile that `dense_conv2d` takes for these tensors."""
    pixels = y.shape[0] * y.shape[2] * y.shape[3]
    return dense_tile(y.shape[1], pixels, weight.shape[1], x.shape[1], x.dtype.itemsize)
