"""Max and average pooling over maps of any strides."""

from __future__ import annotations

import triton
import triton.language as tl
from finepruning.kernels.common import (
    activate,
    clear_halo,
    halo_elements,
    needs_64_bits,
    next_power_of_2,
    strides_chwn,
)
from torch import Tensor

BLOCK = 512


@triton.jit
def pool2d_kernel(
    x, y,
    channels, H, W, out_h, out_w, halo, tiles,
    xc, xh, xw, xn, yc, yh, yw, yn,
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, divisor,
    MAX: tl.constexpr, INCLUDE_PAD: tl.constexpr, ACTIVATION: tl.constexpr,
    N: tl.constexpr, CLEAR: tl.constexpr, WIDE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program writes BLOCK_P elements (row, column, image) of a channel. ``divisor`` 0: count pixels."""
    channel = tl.program_id(0) % channels
    tile = tl.program_id(0) // channels
    if WIDE:
        channel = channel.to(tl.int64)
    if CLEAR:  # noqa: SIM102 - known at compile time, unlike the inner test
        if tile >= tiles:
            clear_halo(y + channel * yc, (tile - tiles) * BLOCK_P, out_h, out_w, halo, yh, yw, yn, N, BLOCK_P)
            return
    element = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    if WIDE:
        element = tile.to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    wanted = element < out_h * out_w * N
    n = element % N
    pixel = element // N
    top = (pixel // out_w) * stride_h - pad_h
    left = (pixel % out_w) * stride_w - pad_w
    base = x + channel * xc + n * xn
    if MAX:
        total = tl.full([BLOCK_P], float("-inf"), tl.float32)
    else:
        total = tl.zeros([BLOCK_P], tl.float32)
    i = 0
    while i < kernel_h * kernel_w:
        row = top + (i // kernel_w) * dilation_h
        column = left + (i % kernel_w) * dilation_w
        inside = wanted & (row >= 0) & (row < H) & (column >= 0) & (column < W)
        at = row * xh + column * xw
        if MAX:
            value = tl.load(base + at, mask=inside, other=float("-inf")).to(tl.float32)
            total = tl.where((value > total) | (value != value), value, total)
        else:
            total += tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
        i += 1
    if not MAX:
        # A window may overhang the padding (ceil_mode): pixels beyond it never count.
        bottom = tl.minimum(top + kernel_h, H + pad_h)
        right = tl.minimum(left + kernel_w, W + pad_w)
        if INCLUDE_PAD:
            count = (bottom - top) * (right - left)
        else:
            count = (tl.minimum(bottom, H) - tl.maximum(top, 0)) * (
                tl.minimum(right, W) - tl.maximum(left, 0)
            )
        # Elements beyond the map are not written; keep them from dividing by zero.
        count = tl.where(wanted, count, 1)
        count = tl.where(divisor == 0, count, divisor)
        total = total / count.to(tl.float32)
    at = channel * yc + (pixel // out_w) * yh + (pixel % out_w) * yw + n * yn
    tl.store(y + at, activate(total, ACTIVATION).to(y.dtype.element_ty), mask=wanted)


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
    block = min(BLOCK, max(32, next_power_of_2(outputs)))
    tiles = -(-outputs // block)
    border = -(-halo_elements(out_h, out_w, halo, batch) // block)
    pool2d_kernel[(channels * (tiles + border),)](
        x, y, channels, height, width, out_h, out_w, halo, tiles, *strides_chwn(x), *strides_chwn(y),
        *kernel, *stride, *padding, *dilation, divisor_override or 0,
        MAX=mode == "max", INCLUDE_PAD=count_include_pad, ACTIVATION=activation,
        N=batch, CLEAR=halo > 0, WIDE=needs_64_bits(x, y), BLOCK_P=block,
    )  # fmt: skip
