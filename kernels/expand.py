"""Dense weights just in time: sliced ELL -> a dense matrix in a scratch that the whole network shares.

Work is per stored weight: a row is filled with zeros, then its entries are scattered. The scratch is
small enough to stay in L2, so the dense operation that follows reads it from there.
"""

from __future__ import annotations

import triton
import triton.language as tl
from finepruning.kernels.common import await_previous, let_next_begin, next_power_of_2, overlap
from finepruning.kernels.sliced_ell import SLICE_ROWS, SlicedEll
from torch import Tensor


@triton.jit
def expand_kernel(
    values, col, ptr, order, dense,
    first_row, columns, channels,
    KHW: tl.constexpr, CHANNELS_LAST: tl.constexpr, SLICE: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program writes one row of ``dense``, whose row 0 is row ``first_row`` of the matrix."""
    slot = first_row + tl.program_id(0)
    row = tl.load(order + slot) - first_row
    out = dense + row.to(tl.int64) * columns
    lane = tl.arange(0, BLOCK)
    piece = slot // SLICE
    first = tl.load(ptr + piece)
    width = tl.load(ptr + piece + 1) - first
    start = first * SLICE + (slot % SLICE) * width
    v = tl.load(values + start + lane, mask=lane < width, other=0.0)
    c = tl.load(col + start + lane, mask=lane < width, other=0).to(tl.int32)
    await_previous(OVERLAP)
    let_next_begin(OVERLAP)
    k = 0
    while k < columns:
        tl.store(out + k + lane, tl.zeros([BLOCK], dense.dtype.element_ty), mask=k + lane < columns)
        k += BLOCK
    # Other threads of this program may scatter to what this one has just cleared.
    tl.debug_barrier()
    k = 0
    while k < width:
        if CHANNELS_LAST:
            c = (c % KHW) * channels + c // KHW
        # Rows are padded with zeros at column 0, which must not overwrite a weight there.
        tl.store(out + c, v.to(dense.dtype.element_ty), mask=v != 0.0)
        k += BLOCK
        v = tl.load(values + start + k + lane, mask=k + lane < width, other=0.0)
        c = tl.load(col + start + k + lane, mask=k + lane < width, other=0).to(tl.int32)


def expand(
    weight: SlicedEll,
    dense: Tensor,
    *,
    first_row: int = 0,
    kernel: tuple[int, int] = (1, 1),
    channels_last: bool = False,
) -> None:
    """Write rows ``first_row .. first_row + dense.shape[0]`` of ``weight`` densely.

    Args:
        weight: packed with a window that divides ``first_row``.
        dense: ``[n, columns]``, contiguous; every element is written.
        kernel: (height, width) of the convolution the columns belong to.
        channels_last: order each row as (height, width, channel) instead of PyTorch's order.
    """
    taps = kernel[0] * kernel[1]
    expand_kernel[(dense.shape[0],)](
        weight.values, weight.col, weight.ptr, weight.order, dense,
        first_row, weight.columns, weight.columns // taps,
        KHW=taps, CHANNELS_LAST=channels_last and taps > 1, SLICE=SLICE_ROWS,
        BLOCK=min(1024, max(128, next_power_of_2(weight.columns))), **overlap(),
    )  # fmt: skip
