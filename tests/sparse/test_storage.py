"""Model directories: what was saved comes back, and saving leaves nothing half done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from model_files import small_model
from safetensors.torch import load_file

from finepruning.errors import ArgumentError, CaptureError
from finepruning.sparse.csr import CSR
from finepruning.sparse.graph import Graph, Node
from finepruning.sparse.storage import StoredModel, load, save


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_was_saved_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    model = small_model()
    weight = model.tensors["conv.weight"]
    assert isinstance(weight, CSR)
    tensors = {
        **model.tensors,
        "conv.weight": CSR(weight.values.to(dtype), weight.col, weight.rowptr, weight.shape),
    }
    save(
        StoredModel(model.graph, tensors, model.classes, model.preprocessing, model.provenance),
        tmp_path / "m",
    )
    loaded = load(tmp_path / "m")
    assert loaded.graph == model.graph
    assert (loaded.classes, loaded.preprocessing, loaded.provenance) == (
        model.classes,
        model.preprocessing,
        model.provenance,
    )
    back = loaded.tensors["conv.weight"]
    assert isinstance(back, CSR)
    assert back.values.dtype is dtype
    assert torch.equal(back.to_dense(), tensors["conv.weight"].to_dense())  # type: ignore[union-attr]
    assert torch.equal(loaded.tensors["head.weight"], model.tensors["head.weight"])  # type: ignore[arg-type]


def test_other_readers_can_open_the_weights(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    assert sorted(tensors) == [
        "conv.bias",
        "conv.weight.col",
        "conv.weight.rowptr",
        "conv.weight.values",
        "head.weight",
        "shift",
    ]
    assert tensors["conv.weight.col"].dtype is torch.uint16


def test_columns_beyond_16_bits_are_stored_wider(tmp_path: Path) -> None:
    weight = torch.zeros(2, 70_000)
    weight[0, 69_999] = weight[1, 5] = 1.0
    graph = Graph("x", (70_000,), (Node("fc", "linear", ("x",), {}, "w"),), "fc")
    save(StoredModel(graph, {"w": CSR.from_dense(weight)}), tmp_path / "m")
    loaded = load(tmp_path / "m").tensors["w"]
    assert isinstance(loaded, CSR)
    assert loaded.col.dtype is torch.int32
    assert torch.equal(loaded.to_dense(), weight)


def test_saving_over_a_model_replaces_it_and_keeps_other_files(directory: Path) -> None:
    (directory / "notes.txt").write_text("mine")
    model = small_model()
    save(StoredModel(model.graph, model.tensors, ("w", "x", "y", "z")), directory)
    assert load(directory).classes == ("w", "x", "y", "z")
    assert sorted(os.listdir(directory)) == ["config.json", "model.safetensors", "notes.txt"]
    assert os.listdir(directory.parent) == ["model"]


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    model = small_model()
    broken = StoredModel(model.graph, model.tensors, model.classes, {"not json": object()})
    with pytest.raises(ArgumentError, match="plain JSON"):
        save(broken, tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_saving_onto_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("a file")
    with pytest.raises(ArgumentError, match="no directory"):
        save(small_model(), tmp_path / "m")
    assert (tmp_path / "m").read_text() == "a file"


def test_operations_outside_the_allow_list_are_not_saved(tmp_path: Path) -> None:
    attrs = {"target": "aten.bernoulli.default", "args": [{"value": "x"}], "kwargs": {}, "item": None}
    model = StoredModel(Graph("x", (3,), (Node("n", "aten", ("x",), attrs),), "n"), {})
    with pytest.raises(CaptureError, match=r"aten\.bernoulli\.default"):
        save(model, tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_a_directory_of_links_is_read(directory: Path, tmp_path: Path) -> None:
    """Download caches keep a directory of links to files elsewhere."""
    (tmp_path / "links").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "links" / name).symlink_to(directory / name)
    assert load(tmp_path / "links").graph == load(directory).graph
