"""Inputs, poisoned outputs and tolerances for the kernel tests."""

from __future__ import annotations

import torch
from finepruning.kernels import layout
from finepruning.kernels.sliced_ell import SlicedEll, pack, to_device
from torch import Tensor

from finepruning.sparse.csr import CSR

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def sparse_weight(
    shape: tuple[int, ...],
    density: float,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    alignment: int = 1,
) -> SlicedEll:
    """A random weight whose third row (if any) is empty; ``density`` 0 keeps one entry in all."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(shape, generator=generator)
    dense *= torch.rand(shape, generator=generator) < density
    if shape[0] > 2:
        dense[2] = 0
    if density == 0:
        dense.view(-1)[dense.numel() // 2] = 1.5
    return packed(dense, dtype=dtype, alignment=alignment)


def packed(dense: Tensor, *, dtype: torch.dtype = torch.float32, alignment: int = 1) -> SlicedEll:
    csr = CSR.from_dense(dense)
    weight = pack(csr.values, csr.col, csr.rowptr, csr.columns, dtype=dtype, alignment=alignment)
    return to_device(weight, DEVICE)


def poisoned(
    shape: tuple[int, ...], halo: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """(view, memory) of a batch-innermost tensor full of NaN."""
    memory = torch.full((layout.numel(shape, halo),), float("nan"), dtype=dtype, device=DEVICE)
    return layout.view(memory, shape, halo), memory


def bordered(x: Tensor, halo: int) -> Tensor:
    """A batch-innermost copy of ``x`` inside a zero border."""
    memory = torch.zeros(layout.numel(tuple(x.shape), halo), dtype=x.dtype, device=DEVICE)
    view = layout.view(memory, tuple(x.shape), halo)
    view.copy_(x)
    return view


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Every element written (no NaN left), and close to the float32 reference for the value type."""
    actual = actual.float().cpu()
    scale = max(expected.float().abs().max().item(), 1e-6)
    tolerance = TOLERANCE[dtype] * scale
    torch.testing.assert_close(actual, expected.float().cpu(), rtol=TOLERANCE[dtype], atol=tolerance)


def border_is_zero(memory: Tensor, shape: tuple[int, ...], halo: int) -> bool:
    n, c, h, w = shape
    border = memory.view(c, h + 2 * halo, w + 2 * halo, n).clone()
    border[:, halo : halo + h, halo : halo + w] = 0
    return bool((border == 0).all())
