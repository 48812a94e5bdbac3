"""Elementwise steps over maps of any strides: copy, add, multiply; then residual and activation.

A copy between layouts (into batch-innermost memory with a zero border, out of it, into a slice of a
concatenation) is the same kernel with one input.
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
    next_power_of_2,
    overlap,
    strides_chwn,
)
from torch import Tensor

BLOCK = 1024


@triton.jit
def elementwise_kernel(
    a, b, residual, y,
    channels, H, W, halo, tiles,
    ac, ah, aw, an, bc, bh, bw, bn, rc, rh, rw, rn, yc, yh, yw, yn,
    OP: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    N: tl.constexpr, CLEAR: tl.constexpr, WIDE: tl.constexpr, BLOCK_P: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program writes BLOCK_P elements (row, column, image) of one channel; strides 0 broadcast."""
    await_previous(OVERLAP)
    let_next_begin(OVERLAP)
    channel = tl.program_id(0) % channels
    tile = tl.program_id(0) // channels
    if WIDE:
        channel = channel.to(tl.int64)
    if CLEAR:  # noqa: SIM102 - known at compile time, unlike the inner test
        if tile >= tiles:
            clear_halo(y + channel * yc, (tile - tiles) * BLOCK_P, H, W, halo, yh, yw, yn, N, BLOCK_P)
            return
    element = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    if WIDE:
        element = tile.to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    wanted = element < H * W * N
    n = element % N
    pixel = element // N
    h = pixel // W
    w = pixel % W
    value = tl.load(a + channel * ac + h * ah + w * aw + n * an, mask=wanted, other=0.0).to(tl.float32)
    if OP == "add":
        value += tl.load(b + channel * bc + h * bh + w * bw + n * bn, mask=wanted, other=0.0).to(tl.float32)
    elif OP == "mul":
        value *= tl.load(b + channel * bc + h * bh + w * bw + n * bn, mask=wanted, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        at = channel * rc + h * rh + w * rw + n * rn
        value += tl.load(residual + at, mask=wanted, other=0.0).to(tl.float32)
    at = channel * yc + h * yh + w * yw + n * yn
    tl.store(y + at, activate(value, ACTIVATION).to(y.dtype.element_ty), mask=wanted)


def elementwise(
    op: str,
    a: Tensor,
    y: Tensor,
    *,
    b: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    halo: int = 0,
) -> None:
    """Write ``activation(op(a, b) + residual)`` to ``y``, computed in float32.

    Args:
        op: "copy" (``a`` alone), "add" or "mul".
        a, b: broadcastable to ``y``. residual: like ``y``.
        y: ``[N, C, H, W]`` or ``[N, F]``, any strides; all of it is written.
        activation: a name of `common.ACTIVATIONS`. halo: border around a rank-4 ``y`` to fill with zeros.

    Raises:
        ValueError: ``y`` has another rank than 2 or 4, or an unknown ``op``.
    """
    if op not in ("copy", "add", "mul") or (op == "copy") != (b is None):
        raise ValueError(f"elementwise: op must be copy (one input), add or mul (two inputs), not {op!r}")
    if y.dim() not in (2, 4):
        raise ValueError(f"elementwise: y must have 2 or 4 dimensions, not {y.dim()}")
    inputs, target = _roles([y if t is None else t.expand(y.shape) for t in (a, b, residual)], y, halo)
    batch, channels, height, width = target.shape
    outputs = height * width * batch
    block = min(BLOCK, max(32, next_power_of_2(outputs)))
    tiles = -(-outputs // block)
    border = -(-halo_elements(height, width, halo, batch) // block)
    strides = [s for t in (*inputs, target) for s in strides_chwn(t)]
    elementwise_kernel[(channels * (tiles + border),)](
        *inputs, target, channels, height, width, halo, tiles, *strides,
        OP=op, HAS_RESIDUAL=residual is not None, ACTIVATION=activation,
        N=batch, CLEAR=halo > 0, WIDE=needs_64_bits(*inputs, target), BLOCK_P=block, **overlap(),
    )  # fmt: skip


def _roles(inputs: list[Tensor], y: Tensor, halo: int) -> tuple[list[Tensor], Tensor]:
    """Views with dimensions in the order the kernel writes fastest: the closest in memory innermost.

    The kernel takes ``[inner, outer, rows, columns]``, which is ``[N, C, H, W]`` of a batch-innermost map.
    Other layouts are the same work with the dimensions renamed; a border fixes their meaning.
    """
    if y.dim() == 2:
        inputs, y = [t[:, None, :, None] for t in inputs], y[:, None, :, None]
    if halo:
        return inputs, y
    size = {d: y.stride(d) if y.shape[d] > 1 else 0 for d in range(4)}
    real = sorted((d for d in range(4) if size[d]), key=lambda d: -size[d])
    unit = [d for d in range(4) if not size[d]]
    # Largest stride outermost; with fewer than four real dimensions the middle ones are single.
    inner = real.pop() if real and size[real[-1]] == 1 else unit.pop()
    outer = real.pop(0) if real else unit.pop()
    rows, columns = (unit + real)[:2]
    order = (inner, outer, rows, columns)
    return [t.permute(order) for t in inputs], y.permute(order)
