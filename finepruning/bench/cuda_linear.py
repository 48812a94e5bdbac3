"""Fully connected layers one by one on a GPU: ours, cuBLAS, cuSPARSE (torch CSR) and 2:4 sparsity."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finepruning.bench.cuda import Contender, Prepared, add_speedups, measure, ours, record, tf32
from finepruning.bench.memory import OURS
from finepruning.engine.cuda import CudaExecutor
from finepruning.engine.plan import Plan, Step, Value
from finepruning.sparse.csr import CSR


def linear_rows(
    weight: CSR, batch: int, dtype: torch.dtype, device: torch.device, seconds: float
) -> list[dict[str, Any]]:
    """Rows of one layer, as `cuda.measure` makes them, without bias or activation.

    2:4 runs on a weight of its own, half zeros, because it takes no other pattern: its time counts, not
    its result, which is compared with that weight's.
    """
    name = str(dtype).removeprefix("torch.")
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, weight.columns, generator=generator).to(device, dtype)
    dense = weight.to_dense().to(device, dtype)

    def sparse() -> Prepared:
        values = {
            "x": Value("x", (batch, weight.columns), dtype),
            "y": Value("y", (batch, weight.rows), dtype),
        }
        plan = Plan((Step("fc", "linear", ("x",), "y", {}, weight),), values, "x", "y")
        return ours(CudaExecutor(plan, device, methods={"fc": "sparse"}), x)

    def cublas() -> Prepared:
        own = dense.clone()  # made here, so that it counts as this contender's memory
        return record(device, lambda: F.linear(x, own), own.nbytes)

    def cusparse() -> Prepared:
        compressed = dense.to_sparse_csr()
        parts = (compressed.values(), compressed.col_indices(), compressed.crow_indices())
        columns = x.t().contiguous()
        return record(device, lambda: (compressed @ columns).t(), sum(part.nbytes for part in parts))

    contenders = [
        Contender(OURS, name, sparse),
        Contender("cublas", name, cublas),
        Contender("cusparse", name, cusparse),
    ]
    with torch.cuda.device(device), torch.no_grad(), tf32(False):
        expected = x.float() @ dense.float().t()
        rows = measure(contenders, expected, device, seconds=seconds)
        if dtype is not torch.float32:  # float32 exists for 2:4 with TF32 only
            rows += _structured_rows(dense, x, device, seconds)
    for row in rows:
        row["batch"] = batch
    add_speedups(rows)
    return rows


def _structured_rows(dense: Tensor, x: Tensor, device: torch.device, seconds: float) -> list[dict[str, Any]]:
    keep = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=dense.dtype, device=device)
    weight = torch.randn_like(dense) * keep.repeat(dense.shape[1] // 4)
    # The library takes products of some least size; the images beyond ours are zeros.
    wide = torch.zeros(max(x.shape[0], 16), x.shape[1], dtype=x.dtype, device=device)
    wide[: x.shape[0]] = x

    def prepare() -> Prepared:
        structured = torch.sparse.to_sparse_semi_structured(weight)
        # Half of the values, and two bits to place each of them.
        size = dense.nbytes // 2 + dense.numel() // 2 * 2 // 8
        return record(device, lambda: F.linear(wide, structured)[: x.shape[0]], size, structured)

    contender = Contender("2:4", str(dense.dtype).removeprefix("torch."), prepare)
    return measure([contender], x.float() @ weight.float().t(), device, seconds=seconds)
