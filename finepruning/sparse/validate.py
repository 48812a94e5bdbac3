"""Checks of stored tensors against the layer table, vectorised: loading is as fast as reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finepruning.errors import ModelFileError
from finepruning.sparse.csr import CSR, MAX_U16_COLUMNS, VALUE_DTYPES
from finepruning.sparse.graph import MAX_NAME, fields, is_int, product, short
from finepruning.sparse.shapes import Stored

# Executors may expand a layer to dense, so a few bytes must not stand for gigabytes of zeros.
MAX_EXPANSION = 4096  # dense elements for each byte of the file
MIN_ALLOWANCE = 1 << 24  # dense elements that any file may describe
_CHUNK = 1 << 20


def read_stored(table: Mapping[str, Any], flat: Mapping[str, Tensor], file_bytes: int) -> dict[str, Stored]:
    """Put together and check the tensors that the layer table of config.json lists.

    Args:
        table: name -> ``{"layout", "shape"[, "nnz"]}``. flat: tensors of model.safetensors.
        file_bytes: size of model.safetensors.

    Raises:
        ModelFileError: naming the tensor and the rule, also for tensors in one file but not in the other.
    """
    unused = set(flat)
    stored: dict[str, Stored] = {}
    elements = 0
    for name, value in table.items():
        where = f"tensor {short(name)}"
        if not 1 <= len(name) <= MAX_NAME:
            raise ModelFileError(
                f"config.json: tensors: a name must have 1 to {MAX_NAME} characters: {where}"
            )
        entry = fields(value, f"tensors[{short(name)}]", {"layout": str, "shape": list}, {"nnz": int})
        shape = entry["shape"]
        if len(shape) > 8 or not all(is_int(item, 0, 1 << 31) for item in shape):
            raise ModelFileError(f"config.json: {where}: shape must be up to 8 sizes, not {short(shape)}")
        elements += product(shape)
        if elements > MIN_ALLOWANCE + MAX_EXPANSION * file_bytes:
            raise ModelFileError(
                f"config.json: {where}: shapes describe far more weights than the file can hold"
            )
        if entry["layout"] == "csr":
            parts = {}
            for part in ("values", "col", "rowptr"):
                parts[part] = _take(flat, unused, f"{name}.{part}")
            stored[name] = CSR(parts["values"], parts["col"], parts["rowptr"], tuple(shape))
            _check_csr(stored[name], entry.get("nnz"), name)
        elif entry["layout"] == "dense":
            tensor = _take(flat, unused, name)
            if tuple(tensor.shape) != tuple(shape) or "nnz" in entry:
                raise ModelFileError(
                    f"{where} has shape {tuple(tensor.shape)} in model.safetensors "
                    f"and {short(entry)} in config.json"
                )
            _check_finite(tensor, name)
            stored[name] = tensor
        else:
            raise ModelFileError(
                f"config.json: {where}: layout must be csr or dense, not {short(entry['layout'])}"
            )
    if unused:
        raise ModelFileError(
            f"model.safetensors holds {short(sorted(unused)[0])}, which config.json does not list"
        )
    return stored


def _take(flat: Mapping[str, Tensor], unused: set[str], name: str) -> Tensor:
    if name not in unused:
        problem = "is used twice" if name in flat else "is missing"
        raise ModelFileError(f"model.safetensors: tensor {short(name)} {problem}")
    unused.remove(name)
    return flat[name]


def _check_finite(tensor: Tensor, name: str) -> None:
    if not tensor.is_floating_point():
        return
    for part in torch.split(tensor.reshape(-1), _CHUNK):
        if not bool(part.isfinite().all()):
            raise ModelFileError(f"tensor {short(name)} holds NaN or infinite values")


def _check_csr(csr: Stored, nnz: Any, name: str) -> None:
    assert isinstance(csr, CSR)
    where = f"tensor {short(name)}"
    if len(csr.shape) not in (2, 4) or any(size < 1 for size in csr.shape):
        raise ModelFileError(f"{where}: a CSR weight has 2 or 4 sizes of at least 1, not {short(csr.shape)}")
    if csr.columns >= 1 << 31 or csr.rows >= 1 << 31:
        raise ModelFileError(f"{where}: {csr.rows} x {csr.columns} is too large for 32-bit indices")
    wanted = torch.uint16 if csr.columns <= MAX_U16_COLUMNS else torch.int32
    for part, dtypes in (("values", VALUE_DTYPES), ("col", (wanted,)), ("rowptr", (torch.int32,))):
        tensor: Tensor = getattr(csr, part)
        if tensor.dtype not in dtypes or tensor.dim() != 1:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ModelFileError(
                f"{where}: {part} must be one dimension of {names}, not {short(tuple(tensor.shape))} of "
                f"{str(tensor.dtype).removeprefix('torch.')}"
            )
    if csr.col.numel() != csr.nnz or nnz != csr.nnz:
        raise ModelFileError(
            f"{where}: nnz is {short(nnz)} in config.json, "
            f"with {csr.nnz} values and {csr.col.numel()} columns"
        )
    if csr.rowptr.numel() != csr.rows + 1:
        raise ModelFileError(f"{where}: rowptr must have {csr.rows + 1} entries, not {csr.rowptr.numel()}")
    _check_finite(csr.values, f"{name}.values")
    rowptr = csr.rowptr.numpy()
    if rowptr[0] != 0 or rowptr[-1] != csr.nnz:
        raise ModelFileError(f"{where}: rowptr must run from 0 to {csr.nnz}, not {rowptr[0]} to {rowptr[-1]}")
    if bool((rowptr[1:] < rowptr[:-1]).any()):
        raise ModelFileError(f"{where}: rowptr must not decrease")
    _check_columns(csr.col.numpy(), rowptr, csr.columns, where)


def _check_columns(col: np.ndarray[Any, Any], rowptr: np.ndarray[Any, Any], columns: int, where: str) -> None:
    """Columns in range and strictly ascending inside each row."""
    for start in range(0, len(col), _CHUNK):
        part = col[start : start + _CHUNK + 1]  # one more, to compare across the edge
        if int(part.max()) >= columns or int(part.min()) < 0:
            raise ModelFileError(f"{where}: a column lies outside 0 to {columns - 1}")
        falls = np.flatnonzero(part[1:] <= part[:-1]) + start + 1
        # A fall is allowed only where a row begins.
        place = np.searchsorted(rowptr, falls)
        if not bool((rowptr[np.minimum(place, len(rowptr) - 1)] == falls).all()):
            raise ModelFileError(f"{where}: columns must be strictly ascending inside each row")
