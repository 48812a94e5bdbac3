"""A pruned weight as compressed sparse rows (CSR)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_U16_COLUMNS = 65536
VALUE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class CSR:
    """CSR view of a convolution or fully connected weight.

    The dense weight of shape ``(out, ...)`` is read as a matrix with ``rows = out`` and
    ``columns = prod(shape[1:])``, in PyTorch's memory order: for a convolution a column is
    ``(c * kh + y) * kw + x`` with ``c`` counted inside the row's group.

    Attributes:
        values: ``[nnz]``, float32, float16 or bfloat16.
        col: ``[nnz]``, uint16 when ``columns <= 65536``, else int32; ascending inside a row.
        rowptr: ``[rows + 1]``, int32; row r holds entries ``rowptr[r]:rowptr[r + 1]``.
        shape: shape of the dense weight, ``(oc, ic / groups, kh, kw)`` or ``(out, in)``.
    """

    values: Tensor
    col: Tensor
    rowptr: Tensor
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def columns(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def nnz(self) -> int:
        return self.values.numel()

    @property
    def density(self) -> float:
        return self.nnz / (self.rows * self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes of the three tensors together."""
        return self.values.nbytes + self.col.nbytes + self.rowptr.nbytes

    @classmethod
    def from_dense(cls, weight: Tensor, dtype: torch.dtype | None = None) -> CSR:
        """Keep the entries of ``weight`` that are not zero (subnormal values count as zero)."""
        matrix = weight.detach().to("cpu").reshape(weight.shape[0], -1)
        if dtype is not None:
            matrix = matrix.to(dtype)
        keep = matrix.abs() >= torch.finfo(matrix.dtype).tiny
        row, column = keep.nonzero(as_tuple=True)
        rowptr = torch.zeros(matrix.shape[0] + 1, dtype=torch.int32)
        rowptr[1:] = torch.bincount(row, minlength=matrix.shape[0]).cumsum(0)
        index_dtype = torch.uint16 if matrix.shape[1] <= MAX_U16_COLUMNS else torch.int32
        return cls(matrix[keep], column.to(index_dtype), rowptr, tuple(weight.shape))

    def to_dense(self) -> Tensor:
        """The dense weight, zeros where nothing is stored; dtype of ``values``."""
        dense = torch.zeros(self.rows, self.columns, dtype=self.values.dtype)
        counts = (self.rowptr[1:] - self.rowptr[:-1]).to(torch.int64)
        row = torch.repeat_interleave(torch.arange(self.rows), counts)
        dense[row, self.col.to(torch.int64)] = self.values
        return dense.reshape(self.shape)
