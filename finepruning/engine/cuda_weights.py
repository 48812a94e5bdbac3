"""Weights on a GPU: converted once from CSR, shared by all executors of a model (one for each batch)."""

from __future__ import annotations

import math
import threading
import weakref
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from finepruning.kernels import sliced_ell
from finepruning.kernels.sliced_ell import SLICE_ROWS, SlicedEll, pack, to_device
from finepruning.sparse.csr import CSR

# Dense rows made at a time from a fully connected layer: small enough to stay in the L2 cache.
SCRATCH_BYTES = 16 << 20


@dataclass(frozen=True, eq=False)
class Packed:
    """A CSR weight for the sparse and the expand kernels. ``source`` is the CSR it was made from."""

    ell: SlicedEll
    source: weakref.ref[CSR]

    @property
    def nbytes(self) -> int:
        return int(self.ell.nbytes)


@dataclass(frozen=True, eq=False)
class Dense:
    """A dense weight. ``source`` is the CSR or tensor it was made from."""

    tensor: Tensor
    source: weakref.ref[CSR | Tensor]

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes


_packed: weakref.WeakValueDictionary[tuple[object, ...], Packed] = weakref.WeakValueDictionary()
_dense: weakref.WeakValueDictionary[tuple[object, ...], Dense] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def packed(csr: CSR, dtype: torch.dtype, device: torch.device) -> Packed:
    """``csr`` in sliced ELL with values of ``dtype``; one copy a device while any executor holds it."""
    key = (id(csr), dtype, device)
    with _lock:
        found = _packed.get(key)
        if found is not None and found.source() is csr:
            return found
        ell = pack(csr.values, csr.col, csr.rowptr, csr.columns, dtype=dtype, **_packing(csr, dtype))
        result = Packed(to_device(ell, device), weakref.ref(csr))
        _packed[key] = result
        return result


def packed_bytes(csr: CSR, dtype: torch.dtype) -> int:
    """``nbytes`` of what `packed` makes, without making it."""
    return int(sliced_ell.packed_bytes(csr.rowptr, csr.columns, dtype.itemsize, **_packing(csr, dtype)))


def _packing(csr: CSR, dtype: torch.dtype) -> dict[str, Any]:
    linear = len(csr.shape) == 2
    return {
        # Short rows gain less from 16-byte reads than the rounding costs.
        "alignment": 8 if linear and csr.nnz >= 64 * csr.rows else 1,
        "window": scratch_rows(csr.columns, csr.rows, dtype) if linear else None,
    }


def dense(
    weight: CSR | Tensor,
    dtype: torch.dtype,
    device: torch.device,
    order: Literal["contiguous", "channels_last"] = "contiguous",
) -> Dense:
    """``weight`` as a dense tensor of ``dtype``; one copy a device while any executor holds it."""
    key = (id(weight), dtype, device, order)
    with _lock:
        found = _dense.get(key)
        if found is not None and found.source() is weight:
            return found
        tensor = (weight.to_dense() if isinstance(weight, CSR) else weight.detach()).to(device, dtype)
        if order == "channels_last" and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        result = Dense(tensor, weakref.ref(weight))
        _dense[key] = result
        return result


def scratch_rows(columns: int, rows: int, dtype: torch.dtype) -> int:
    """Rows of a fully connected layer to expand at a time: a multiple of 8 within `SCRATCH_BYTES`."""
    fitting = SCRATCH_BYTES // (columns * dtype.itemsize) // SLICE_ROWS * SLICE_ROWS
    everything = math.ceil(rows / SLICE_ROWS) * SLICE_ROWS
    return int(min(max(fitting, SLICE_ROWS), everything))
