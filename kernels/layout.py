"""Batch-innermost maps: memory order (channel, row, column, image) with an optional zero border.

With images innermost every tap of a convolution, at any stride, padding or odd width, reads one
contiguous run per pixel; at batch 1 this is plain NCHW memory.
"""

from __future__ import annotations

import torch
from torch import Tensor


def numel(shape: tuple[int, ...], halo: int) -> int:
    """Elements of the memory behind a batch-innermost value of logical ``shape`` (batch first)."""
    if len(shape) == 4:
        n, c, h, w = shape
        return c * (h + 2 * halo) * (w + 2 * halo) * n
    count = 1
    for size in shape:
        count *= size
    return count


def view(memory: Tensor, shape: tuple[int, ...], halo: int = 0) -> Tensor:
    """A logical view (batch first) of batch-innermost memory.

    Args:
        memory: one-dimensional, at least ``numel(shape, halo)`` elements.
        shape: ``(N, C, H, W)`` or ``(N, F)``. halo: width of the zero border, rank 4 only.
    """
    memory = memory[: numel(shape, halo)]
    if len(shape) == 4:
        n, c, h, w = shape
        padded = memory.view(c, h + 2 * halo, w + 2 * halo, n)
        return padded[:, halo : halo + h, halo : halo + w, :].permute(3, 0, 1, 2)
    n, f = shape
    return memory.view(f, n).t()


def empty(
    shape: tuple[int, ...], halo: int = 0, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """A new batch-innermost tensor; its border, too, is left unwritten."""
    return view(torch.empty(numel(shape, halo), dtype=dtype, device=device), shape, halo)
