"""Sliced ELL: the packed form of a pruned weight that every CUDA kernel reads.

Rows are sorted by length inside windows and grouped into slices of a few rows. All rows of a slice are
stored with the length of its longest, so a kernel needs one start and one width per slice and no mask
per entry. (SELL-C-sigma: Kreutzer et al., SIAM J. Sci. Comput. 36(5), 2014, with rows kept contiguous
because a row is read by many threads here.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

SLICE_ROWS = 8
# The widest matrix whose columns are stored in 16 bits.
MAX_SHORT_COLUMNS = 65536


@dataclass(frozen=True)
class SlicedEll:
    """A sparse matrix of ``rows x columns``, packed for the kernels of this package.

    Attributes:
        values: ``[stored]``, float32, float16 or bfloat16. Entry k of the row in slot s is at
            ``(ptr[s // 8] * 8) + (s % 8) * width + k`` where ``width = ptr[s // 8 + 1] - ptr[s // 8]``.
        col: ``[stored]``, uint16 or int32; rows shorter than their slice end with column 0, value 0.
        ptr: ``[slices + 1]``, int32: start of each slice in units of 8 entries.
        order: ``[rows]``, int32: slot -> row of the matrix.
        window: rows are sorted inside windows of this many rows, so that the slots of a window hold
            exactly its rows.
        alignment: every slice width is a multiple of this.
    """

    values: Tensor
    col: Tensor
    ptr: Tensor
    order: Tensor
    rows: int
    columns: int
    window: int
    alignment: int = 1

    @property
    def slices(self) -> int:
        return self.ptr.numel() - 1

    @property
    def nbytes(self) -> int:
        """Bytes of the four tensors together."""
        return self.values.nbytes + self.col.nbytes + self.ptr.nbytes + self.order.nbytes


def pack(
    values: Tensor,
    col: Tensor,
    rowptr: Tensor,
    columns: int,
    *,
    dtype: torch.dtype | None = None,
    alignment: int = 1,
    window: int | None = None,
) -> SlicedEll:
    """Pack CSR tensors (on the CPU) into sliced ELL.

    Args:
        values: ``[nnz]``. col: ``[nnz]``, any integer type. rowptr: ``[rows + 1]``, any integer type.
        columns: width of the matrix.
        dtype: type of the packed values; None keeps that of ``values``.
        alignment: slice widths are rounded up to this; 8 lets 16-bit entries be read 16 bytes at a time.
        window: sort rows inside windows of this many rows, a multiple of 8; None sorts all rows together.

    Raises:
        ValueError: ``window`` is not a positive multiple of 8, or the matrix has too many entries for
            32-bit offsets.
    """
    rows = rowptr.numel() - 1
    start = rowptr.to(torch.int64)
    length = start[1:] - start[:-1]
    window = rounded(rows) if window is None else window
    order, width = _slices(length, columns, alignment, window)
    slices = width.numel()
    ptr = torch.zeros(slices + 1, dtype=torch.int64)
    ptr[1:] = width.cumsum(0)
    stored = int(ptr[-1]) * SLICE_ROWS
    if stored >= 2**31:
        raise ValueError(f"a packed matrix holds at most {2**31 - 1} entries, not {stored}")

    slot = torch.arange(rows)
    slot_start = ptr[slot // SLICE_ROWS] * SLICE_ROWS + (slot % SLICE_ROWS) * width[slot // SLICE_ROWS]
    counts = length[order]
    first = torch.repeat_interleave(slot_start, counts)
    source = torch.repeat_interleave(start[:-1][order], counts)
    within = torch.arange(int(counts.sum())) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    packed_values = torch.zeros(stored, dtype=dtype or values.dtype)
    packed_values[first + within] = values[source + within].to(packed_values.dtype)
    wide = torch.zeros(stored, dtype=torch.int64)
    wide[first + within] = col.to(torch.int64)[source + within]
    index_dtype = torch.uint16 if columns <= MAX_SHORT_COLUMNS else torch.int32
    return SlicedEll(
        packed_values,
        wide.to(index_dtype),
        ptr.to(torch.int32),
        order.to(torch.int32),
        rows,
        columns,
        window,
        alignment,
    )


def packed_bytes(
    rowptr: Tensor, columns: int, itemsize: int, *, alignment: int = 1, window: int | None = None
) -> int:
    """``SlicedEll.nbytes`` of what `pack` would make with values of ``itemsize`` bytes, without making it."""
    length = rowptr.to(torch.int64).diff()
    rows = length.numel()
    _, width = _slices(length, columns, alignment, rounded(rows) if window is None else window)
    stored = int(width.sum()) * SLICE_ROWS
    return stored * (itemsize + (2 if columns <= MAX_SHORT_COLUMNS else 4)) + 4 * (width.numel() + 1 + rows)


def rounded(rows: int) -> int:
    """The least multiple of `SLICE_ROWS` that is not below ``rows``."""
    return -(-rows // SLICE_ROWS) * SLICE_ROWS


def _slices(length: Tensor, columns: int, alignment: int, window: int) -> tuple[Tensor, Tensor]:
    """(slot -> row, width of each slice) for rows of these lengths."""
    if window <= 0 or window % SLICE_ROWS:
        raise ValueError(f"window must be a positive multiple of {SLICE_ROWS}, not {window}")
    rows = length.numel()
    # One sort by (window, falling length); longest first also starts the longest programs first.
    block = torch.arange(rows) // window
    order = torch.argsort(block * (columns + 1) + (columns - length), stable=True)
    padded = torch.zeros(rounded(rows), dtype=torch.int64)
    padded[:rows] = length[order]
    width = padded.view(-1, SLICE_ROWS).amax(1)
    return order, -(-width // alignment) * alignment


def to_device(weight: SlicedEll, device: torch.device) -> SlicedEll:
    """The same matrix with its tensors on ``device``."""
    return replace(
        weight,
        values=weight.values.to(device),
        col=weight.col.to(device),
        ptr=weight.ptr.to(device),
        order=weight.order.to(device),
    )
