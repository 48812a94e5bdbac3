"""A limit on the bytes of the model directory, as it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finepruning.config import CompressConfig
from finepruning.errors import ArgumentError
from finepruning.pruning import exact_cut, prunable_layers
from finepruning.report.text import size_text
from finepruning.sparse.csr import CSR, MAX_U16_COLUMNS
from finepruning.sparse.storage import StoredModel, stored_bytes
from finepruning.targets.base import CostTarget, Recut

TARGET_BYTES = "target_bytes"
ATTEMPTS = 5
_LARGEST = 8  # bytes of a value and its index
_VALUE, _POINTER = 4, 4  # bytes of a float32 value and of a row pointer


@dataclass(frozen=True)
class _Weight:
    """One stored weight: which layer it is of, and its matrix."""

    name: str
    layer: int
    rows: int
    columns: int

    @property
    def index_bytes(self) -> int:
        return 2 if self.columns <= MAX_U16_COLUMNS else 4

    def sparse_bytes(self, nnz: NDArray[np.int64]) -> NDArray[np.int64]:
        return nnz * (_VALUE + self.index_bytes) + _POINTER * (self.rows + 1)

    @property
    def dense_bytes(self) -> int:
        return _VALUE * self.rows * self.columns


class FileModel:
    """The bytes of a model directory as a function of how many weights each layer keeps."""

    def __init__(self, stored: StoredModel, layers: Sequence[str]) -> None:
        """``stored`` is any captured state of the network; ``layers`` name the prunable ones."""
        self._stored = stored
        self._weights = [
            _Weight(name, index, tensor.shape[0], int(np.prod(tensor.shape[1:])))
            for index, layer in enumerate(layers)
            for name, tensor in stored.tensors.items()
            if name == f"{layer}.weight" or name.startswith(f"{layer}.weight@")
        ]
        self.least = self.exact([1] * len(layers))
        one = np.ones(1, dtype=np.int64)
        self._fixed = self.least - sum(int(weight.sparse_bytes(one)[0]) for weight in self._weights)

    def cost(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Bytes for counts ``[layers, points]``, up to the text that describes the tensors."""
        total = np.full(counts.shape[1], float(self._fixed))
        for weight in self._weights:
            total += np.minimum(weight.sparse_bytes(counts[weight.layer]), weight.dense_bytes)
        return total

    def exact(self, counts: Sequence[int]) -> int:
        """Bytes with so many nonzero weights in each layer."""
        tensors = dict(self._stored.tensors)
        for weight in self._weights:
            nnz = counts[weight.layer]
            shape = tuple(tensors[weight.name].shape)
            sparse = int(weight.sparse_bytes(np.array([nnz]))[0])
            tensors[weight.name] = (
                _sizes_only(shape, nnz, weight) if sparse < weight.dense_bytes else _empty(shape)
            )
        return stored_bytes(replace(self._stored, tensors=tensors))


def _empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _sizes_only(shape: tuple[int, ...], nnz: int, weight: _Weight) -> CSR:
    index = torch.uint16 if weight.index_bytes == 2 else torch.int32
    return CSR(_empty((nnz,)), _empty((nnz,), index), _empty((weight.rows + 1,), torch.int32), shape)


class FileSizeTarget(CostTarget):
    """``--target-bytes``: config.json and model.safetensors together have at most so many bytes."""

    name = TARGET_BYTES

    def __init__(
        self,
        config: CompressConfig,
        layers: Mapping[str, nn.Parameter],
        model: StoredModel,
        capture: Callable[[nn.Module], StoredModel],
    ) -> None:
        """``model`` is the network before training, ``capture`` makes the same of it later.

        Raises:
            ArgumentError: one weight a layer is already more.
        """
        assert config.target_bytes is not None
        self.asked = config.target_bytes
        self._capture = capture
        files = FileModel(model, list(layers))
        if files.least > self.asked:
            raise ArgumentError(
                f"target_bytes {self.asked} ({size_text(self.asked)}) cannot be reached: with one weight in "
                f"each of its {len(layers)} layers this network's model directory has {files.least} bytes; "
                "ask for more, or choose a smaller network"
            )
        super().__init__(config, files.cost, self.asked)

    def settle(self, module: nn.Module, recut: Recut) -> None:
        """Correct the limit by what the cost leaves out, until the directory is as large as it may be."""
        layers = prunable_layers(module)
        files = FileModel(self._capture(module), list(layers))
        self._cost = files.cost
        best = -1
        limit = float(self.state["limit"])
        for _ in range(ATTEMPTS):
            self.state["limit"] = limit
            recut(self.keep)
            size = files.exact([int(torch.count_nonzero(weight)) for weight in layers.values()])
            if best < size <= self.asked:
                best, kept_limit = size, limit
            if size == self.asked:
                break
            limit += self.asked - size
        if best >= 0 and self.state["limit"] != kept_limit:
            self.state["limit"] = kept_limit
            recut(self.keep)

    def trim(self, module: nn.Module) -> None:
        """Set the smallest weights to zero where the directory would still be too large.

        Only batch normalisation can cause it: whether one is folded into the layer before it is decided by
        its statistics, and one that is not has tensors of its own.
        """
        layers = prunable_layers(module)
        files = FileModel(self._capture(module), list(layers))
        while True:
            counts = [int(torch.count_nonzero(weight)) for weight in layers.values()]
            excess = files.exact(counts) - int(self.asked)
            if excess <= 0 or sum(counts) <= len(counts):
                return
            _drop_smallest(layers.values(), max(1, excess // _LARGEST))

    def outcome(self, report: Mapping[str, Any]) -> dict[str, Any]:
        return {"name": self.name, "asked": self.asked, "reached": report["bytes_sparse"]}


@torch.no_grad()
def _drop_smallest(weights: Iterable[nn.Parameter], count: int) -> None:
    """Set the ``count`` smallest weights that are not zero to zero; every layer keeps its largest."""
    weights = list(weights)
    alive = sum(int(torch.count_nonzero(weight)) for weight in weights)
    masks = exact_cut([weight.abs() for weight in weights], max(len(weights), alive - count))
    for weight, mask in zip(weights, masks, strict=True):
        weight.mul_(mask)
