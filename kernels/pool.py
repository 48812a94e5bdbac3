"""Max and average pooling over maps of any strides."""

from __future__ import annotations

import triton
import triton.language as tl
from finepruning.kernels.common import (
    PROCESSORS,
    activate,
    await_previous,
    clear_halo,
    halo_elements,
    let_next_begin,
    needs_64_bits,
    next_power_of_2,
    overlap,
    strides_chwn,
)
from torch import Tensor

MAX_CHANNELS = 64
# Taps of a window that are read before the first is needed.
MAX_UNROLL = 16
# What a thread writes; 128 threads have a program's outputs, fewer where the map would not occupy the device.
PER_THREAD = 4
ENOUGH_PROGRAMS = 2 * PROCESSORS
BORDER = 256


@triton.jit
def pool2d_kernel(
    x, y,
    channels, H, W, out_h, out_w, halo, programs,
    xc, xh, xw, xn, yc, yh, yw, yn,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, divisor,
    KH: tl.constexpr, KW: tl.constexpr, UNROLL: tl.constexpr,
    MAX: tl.constexpr, INCLUDE_PAD: tl.constexpr, ACTIVATION: tl.constexpr,
    N: tl.constexpr, CLEAR: tl.constexpr, WIDE: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    BORDER: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program writes PIXELS elements (row, column, image) of CHANNELS channels.

    ``divisor`` 0: count pixels. UNROLL taps of a window are under way at once.
    """
    await_previous(OVERLAP)
    let_next_begin(OVERLAP)
    pid = tl.program_id(0)
    if CLEAR:  # noqa: SIM102 - known at compile time, unlike the inner test
        if pid >= programs:
            plane = (pid - programs) % channels
            if WIDE:
                plane = plane.to(tl.int64)
            first = (pid - programs) // channels * BORDER
            clear_halo(y + plane * yc, first, out_h, out_w, halo, yh, yw, yn, N, BORDER)
            return
    blocks = (channels + CHANNELS - 1) // CHANNELS
    channel = pid % blocks * CHANNELS + tl.arange(0, CHANNELS)
    element = pid // blocks * PIXELS + tl.arange(0, PIXELS)
    if WIDE:
        channel = channel.to(tl.int64)
        element = (pid // blocks).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    wanted = element < out_h * out_w * N
    stored = wanted[:, None] & (channel < channels)[None, :]
    n = element % N
    pixel = element // N
    top = (pixel // out_w) * stride_h - pad_h
    left = (pixel % out_w) * stride_w - pad_w
    base = x + (n * xn)[:, None] + (channel * xc)[None, :]
    if MAX:
        total = tl.full([PIXELS, CHANNELS], float("-inf"), tl.float32)
    else:
        total = tl.zeros([PIXELS, CHANNELS], tl.float32)
    first = 0
    while first < KH * KW:
        for j in tl.static_range(UNROLL):
            i = first + j
            row = top + (i // KW) * dilation_h
            column = left + (i % KW) * dilation_w
            inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
            if KH * KW % UNROLL != 0:
                inside &= i < KH * KW
            at = base + (row * xh + column * xw)[:, None]
            if MAX:
                value = tl.load(at, mask=inside[:, None] & stored, other=float("-inf")).to(tl.float32)
                total = tl.where((value > total) | (value != value), value, total)
            else:
                total += tl.load(at, mask=inside[:, None] & stored, other=0.0).to(tl.float32)
        first += UNROLL
    if not MAX:
        # A window may overhang the padding (ceil_mode): pixels beyond it never count.
        bottom = tl.minimum(top + KH, H + pad_h)
        right = tl.minimum(left + KW, W + pad_w)
        if INCLUDE_PAD:
            count = (bottom - top) * (right - left)
        else:
            count = (tl.minimum(bottom, H) - tl.maximum(top, 0)) * (
                tl.minimum(right, W) - tl.maximum(left, 0)
            )
        # Elements beyond the map are not written; keep them from dividing by zero.
        count = tl.where(wanted, count, 1)
        count = tl.where(divisor == 0, count, divisor)
        total = total / count.to(tl.float32)[:, None]
    at = ((pixel // out_w) * yh + (pixel % out_w) * yw + n * yn)[:, None] + (channel * yc)[None, :]
    tl.store(y + at, activate(total, ACTIVATION).to(y.dtype.element_ty), mask=stored)


def pool2d(
    mode: str,
    x: Tensor,
    y: Tensor,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    activation: str | None = None,
    halo: int = 0,
) -> None:
    """Write the max or average of each window of ``x`` to ``y``; sums are float32.

    Args:
        mode: "max" or "avg". x: ``[N, C, H, W]``, any strides; needs no border.
        y: ``[N, C, OH, OW]``, any strides; all of it is written. Its size decides about ceil_mode.
        count_include_pad, divisor_override: of the average, as in PyTorch.
        activation: a name of `common.ACTIVATIONS`. halo: border around ``y`` to fill with zeros.
    """
    batch, channels, height, width = x.shape
    out_h, out_w = y.shape[2:]
    outputs = out_h * out_w * batch
    warps = 4 if channels * outputs >= ENOUGH_PROGRAMS * 128 * PER_THREAD else 1
    # Threads lie along what is closest in memory: channels, or pixels and images.
    innermost = x.stride(1) == 1 and channels > 1
    block_c = min(MAX_CHANNELS, next_power_of_2(channels)) if innermost else 1
    pixels = max(1, min(32 * warps * PER_THREAD // block_c, next_power_of_2(outputs)))
    programs = -(-channels // block_c) * -(-outputs // pixels)
    border = -(-halo_elements(out_h, out_w, halo, batch) // BORDER)
    taps = kernel[0] * kernel[1]
    pool2d_kernel[(programs + channels * border,)](
        x, y, channels, height, width, out_h, out_w, halo, programs, *strides_chwn(x), *strides_chwn(y),
        *stride, *padding, *dilation, divisor_override or 0,
        KH=kernel[0], KW=kernel[1], UNROLL=taps if taps <= MAX_UNROLL else MAX_UNROLL // 2,
        MAX=mode == "max", INCLUDE_PAD=count_include_pad, ACTIVATION=activation,
        N=batch, CLEAR=halo > 0, WIDE=needs_64_bits(x, y), CHANNELS=block_c, PIXELS=pixels,
        BORDER=BORDER, num_warps=warps, **overlap(),
    )  # fmt: skip
