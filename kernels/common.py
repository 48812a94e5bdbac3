"""What the kernels share: activations, the halo of a batch-innermost map, launch order and arithmetic."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

MAX_OFFSET = 2**31 - 1
# An H100 or H200 has 132 processors; others have fewer of nearly the same make.
PROCESSORS = 132

ACTIVATIONS = (None, "relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid", "gelu")


@triton.jit
def activate(value, ACTIVATION: tl.constexpr):
    """Apply an activation to float32 values. NaN stays NaN, as in PyTorch."""
    if ACTIVATION == "relu":
        value = tl.where(value < 0.0, 0.0, value)
    elif ACTIVATION == "relu6":
        value = tl.where(value < 0.0, 0.0, tl.where(value > 6.0, 6.0, value))
    elif ACTIVATION == "hardsigmoid":
        value = value + 3.0
        value = tl.where(value < 0.0, 0.0, tl.where(value > 6.0, 6.0, value)) * (1.0 / 6.0)
    elif ACTIVATION == "hardswish":
        gate = value + 3.0
        value = value * tl.where(gate < 0.0, 0.0, tl.where(gate > 6.0, 6.0, gate)) * (1.0 / 6.0)
    elif ACTIVATION == "silu":
        value = value / (1.0 + tl.exp(-value))
    elif ACTIVATION == "sigmoid":
        value = 1.0 / (1.0 + tl.exp(-value))
    elif ACTIVATION == "gelu":
        value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    return value


@triton.jit
def let_next_begin(OVERLAP: tl.constexpr):
    """Allow the launch after this one to begin once all programs of this one have come so far, or ended.

    Programmatic dependent launch (CUDA programming guide). Every kernel must then `await_previous` before
    it touches memory that any launch before it reads or writes; only weights are never written. Kernels say
    so after they have waited themselves, long ones after their loop: programs that wait take room, and
    where several launches in a row waited, those that worked were spread over the device unevenly.
    """
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def await_previous(OVERLAP: tl.constexpr):
    """Wait until the launch before this one has ended, and with it (as it waited, too) all before it."""
    if OVERLAP:
        gdc_wait()


@triton.jit
def clear_halo(plane, first, H, W, HALO, stride_h, stride_w, stride_n, N: tl.constexpr, BLOCK: tl.constexpr):
    """Write zeros to elements ``first .. first + BLOCK`` of the border around one H x W x N map.

    The border is HALO pixels wide; ``plane`` points at pixel (0, 0). The producer of a map clears its
    border in the same launch, so that a convolution never tests bounds and the arena can reuse memory.
    """
    element = first + tl.arange(0, BLOCK)
    n = element % N
    pixel = element // N
    wide = W + 2 * HALO
    top = HALO * wide
    sides = 2 * HALO * H
    side = pixel - top
    side_x = side % (2 * HALO)
    bottom = side - sides
    y = tl.where(
        pixel < top,
        pixel // wide - HALO,
        tl.where(side < sides, side // (2 * HALO), H + bottom // wide),
    )
    x = tl.where(
        pixel < top,
        pixel % wide - HALO,
        tl.where(side < sides, side_x - HALO + tl.where(side_x < HALO, 0, W), bottom % wide - HALO),
    )
    offset = y * stride_h + x * stride_w + n * stride_n
    zero = tl.zeros([BLOCK], plane.dtype.element_ty)
    tl.store(plane + offset, zero, mask=pixel < 2 * top + sides)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least ``n`` (and at least 1)."""
    return 1 << max(n - 1, 0).bit_length()


def overlap() -> dict[str, bool]:
    """Options of launches that may begin before the one before has ended: from compute capability 9.0 on."""
    if triton.knobs.runtime.interpret:
        return {"OVERLAP": False}
    target = triton.runtime.driver.active.get_current_target()
    able = target.backend == "cuda" and target.arch >= 90
    return {"OVERLAP": able, "launch_pdl": able}


def halo_elements(height: int, width: int, halo: int, batch: int) -> int:
    """Elements of the border that `clear_halo` writes for one channel."""
    return ((height + 2 * halo) * (width + 2 * halo) - height * width) * batch


def needs_64_bits(*tensors: Tensor) -> bool:
    """Whether element offsets into any of these tensors (with the border around a map) may exceed 32 bits."""
    return any(
        sum(size * stride for size, stride in zip(t.shape, t.stride(), strict=True)) > MAX_OFFSET
        for t in tensors
    )


def strides_chwn(t: Tensor) -> tuple[int, int, int, int]:
    """Strides of a ``[N, C, H, W]`` tensor in the order (channel, row, column, image)."""
    n, c, h, w = t.stride()
    return c, h, w, n


def strides_in_units(t: Tensor) -> tuple[tuple[int, int, int, int], int]:
    """`strides_chwn` with all but the image stride divided by a unit: the batch where that divides them.

    Batch-innermost strides are multiples of the batch, a compile-time constant, so the compiler then
    knows that runs of images are aligned even where the batch is less than its own hint of 16.
    """
    c, h, w, n = strides_chwn(t)
    unit = t.shape[0] if n == 1 and all(s % t.shape[0] == 0 for s in (c, h, w)) else 1
    return (c // unit, h // unit, w // unit, n), unit
