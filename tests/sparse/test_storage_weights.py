"""Altered weights: each is refused with an error that names the tensor and the rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import edit_weights, rehash
from torch import Tensor

from finepruning.errors import ModelFileError
from finepruning.sparse.storage import load


def put(name: str, index: int, value: float) -> Callable[[dict[str, Tensor]], Any]:
    def change(tensors: dict[str, Tensor]) -> None:
        raw = tensors[name].numpy()
        raw[index] = value

    return change


WEIGHT_ATTACKS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "NaN": (put("conv.weight.values", 0, float("nan")), "'conv.weight.values' holds NaN"),
    "infinite": (put("conv.bias", 0, float("inf")), "'conv.bias' holds NaN or infinite"),
    "rowptr starts late": (put("conv.weight.rowptr", 0, 1), "rowptr must run from 0"),
    "rowptr ends late": (put("conv.weight.rowptr", 6, 1 << 30), "rowptr must run from 0"),
    "rowptr decreases": (put("conv.weight.rowptr", 2, -5), "must not decrease"),
    "rowptr exceeds": (put("conv.weight.rowptr", 2, 1 << 20), "must not decrease"),
    "column out of range": (put("conv.weight.col", 0, 27), "column lies outside 0 to 26"),
    "duplicate column": (
        lambda t: t["conv.weight.col"].numpy().__setitem__(1, int(t["conv.weight.col"][0])),
        "strictly ascending",
    ),
    "values dtype": (
        lambda t: t.update({"conv.weight.values": t["conv.weight.values"].to(torch.int32)}),
        "values must be one dimension",
    ),
    "col dtype": (
        lambda t: t.update({"conv.weight.col": t["conv.weight.col"].to(torch.int32)}),
        "col must be one dimension of uint16",
    ),
    "rowptr dtype": (
        lambda t: t.update({"conv.weight.rowptr": t["conv.weight.rowptr"].to(torch.int64)}),
        "rowptr must be one dimension of int32",
    ),
    "fewer columns": (lambda t: t.update({"conv.weight.col": t["conv.weight.col"][:-1].clone()}), "columns"),
    "unused tensor": (lambda t: t.update(extra=torch.zeros(2)), "'extra'"),
    "missing tensor": (lambda t: t.pop("conv.weight.col"), "'conv.weight.col' is missing"),
    "integer bias": (lambda t: t.update({"conv.bias": torch.zeros(6, dtype=torch.int32)}), "floating-point"),
    "bias too long": (lambda t: t.update({"conv.bias": torch.zeros(7)}), "'conv.bias'"),
}


@pytest.mark.parametrize("attack", sorted(WEIGHT_ATTACKS))
def test_altered_weights(directory: Path, attack: str) -> None:
    change, message = WEIGHT_ATTACKS[attack]
    edit_weights(directory, change)
    with pytest.raises(ModelFileError, match=message):
        load(directory)


def test_a_flipped_weight_is_noticed(directory: Path) -> None:
    path = directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"altered|NaN|ascending|outside"):
        load(directory)


def header(entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
RAW_WEIGHTS = {
    "no header": b"1234",
    "huge header": header({}, length=1 << 63),
    "not JSON": header(b"garbage!"),
    "list": header([]),
    "duplicate": header(b'{"a": 1, "a": 2}'),
    "entry no object": header({"a": 3}),
    "entry incomplete": header({"a": {"dtype": "F32"}}),
    "unknown dtype": header({"a": {**F32, "dtype": "F8_E4M3"}}, b"1234"),
    "unhashable dtype": header({"a": {**F32, "dtype": []}}, b"1234"),
    "negative shape": header({"a": {**F32, "shape": [-1]}}, b"1234"),
    "overflowing shape": header({"a": {**F32, "shape": [1 << 40] * 8}}, b"1234"),
    "beyond the file": header({"a": {**F32, "shape": [2], "data_offsets": [0, 8]}}, b"1234"),
    "backwards": header({"a": {**F32, "shape": [0], "data_offsets": [4, 4]}}, b"1234"),
    "overlap": header({"a": F32, "b": F32}, b"1234"),
    "hole": header({"a": {**F32, "data_offsets": [4, 8]}}, b"12345678"),
    "data behind": header({"a": F32}, b"12345678"),
    "metadata": header({"__metadata__": {"a": 1}}),
}


@pytest.mark.parametrize("case", sorted(RAW_WEIGHTS))
def test_weights_that_are_no_safetensors(directory: Path, case: str) -> None:
    (directory / "model.safetensors").write_bytes(RAW_WEIGHTS[case])
    rehash(directory)
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        load(directory)
