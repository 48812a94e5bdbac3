"""Model directories: what was saved comes back, and nothing else is believed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from finepruning.errors import ArgumentError, CaptureError, ModelFileError
from finepruning.sparse.csr import CSR
from finepruning.sparse.graph import Graph, Node
from finepruning.sparse.storage import StoredModel, load, save

CONV = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}


def small_model() -> StoredModel:
    torch.manual_seed(0)
    weight, head = torch.randn(6, 3, 3, 3), torch.randn(4, 6)
    weight[torch.rand_like(weight) < 0.8] = 0
    head[torch.rand_like(head) < 0.5] = 0
    permute = {
        "target": "aten.permute.default",
        "args": [{"value": "x"}, [0, 1, 3, 2]],
        "kwargs": {},
        "item": None,
    }
    shift = {
        "target": "aten.add.Tensor",
        "args": [{"value": "flat"}, {"tensor": "shift"}],
        "kwargs": {},
        "item": None,
    }
    graph = Graph(
        "x",
        (3, 8, 6),
        (
            Node("turned", "aten", ("x",), permute),
            Node("conv", "conv2d", ("turned",), CONV, "conv.weight", "conv.bias"),
            Node("relu", "activation", ("conv",), {"kind": "relu"}),
            Node("pool", "adaptive_avg_pool2d", ("relu",), {"size": [1, 1]}),
            Node("flat", "view", ("pool",), {"shape": [{"batch": [1, 0]}, 6]}),
            Node("shifted", "aten", ("flat",), shift),
            Node("head", "linear", ("shifted",), {}, "head.weight"),
        ),
        "head",
    )
    tensors = {
        "conv.weight": CSR.from_dense(weight),
        "conv.bias": torch.randn(6),
        "shift": torch.randn(6),
        "head.weight": head,
    }
    return StoredModel(graph, tensors, ("a", "b", "c", "d"), {"image_size": 8}, {"note": "made by a test"})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save(small_model(), tmp_path / "model")
    return tmp_path / "model"


def edit_config(directory: Path, change: Callable[[Any], Any]) -> None:
    path = directory / "config.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def edit_weights(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Alter tensors and keep the checksum right, so that the checks behind it are reached."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    rehash(directory)


def rehash(directory: Path) -> None:
    digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    edit_config(directory, lambda document: document.update(sha256=digest))


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


def node(document: Any, name: str) -> Any:
    return next(entry for entry in document["graph"]["nodes"] if entry["name"] == name)


CONFIG_ATTACKS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "foreign": (lambda d: d.update(format="other"), "does not describe"),
    "newer version": (lambda d: d.update(version=2), "version 2"),
    "unknown key": (lambda d: d.update(extra=1), "unknown key 'extra'"),
    "missing key": (lambda d: d.pop("graph"), "lacks the key 'graph'"),
    "wrong type": (lambda d: d.update(tensors=[]), "tensors must be an object"),
    "checksum": (lambda d: d.update(sha256="0"), "was altered"),
    "unknown operation": (lambda d: node(d, "relu").update(op="system"), "'system' is not one of"),
    "use before definition": (lambda d: node(d, "turned").update(inputs=["relu"]), "not produced before"),
    "cycle": (lambda d: node(d, "relu").update(inputs=["relu"]), "not produced before"),
    "name used twice": (lambda d: node(d, "relu").update(name="conv"), "used twice"),
    "too many inputs": (lambda d: node(d, "relu").update(inputs=["conv", "conv"]), "1 to 1 names"),
    "huge padding": (lambda d: node(d, "conv")["attrs"].update(padding=[1 << 40, 1]), "attrs.padding"),
    "large result": (
        lambda d: node(d, "conv")["attrs"].update(padding=[1 << 19, 1 << 19]),
        "elements an image",
    ),
    "zero stride": (lambda d: node(d, "conv")["attrs"].update(stride=[0, 1]), "attrs.stride"),
    "bool for a number": (lambda d: node(d, "conv")["attrs"].update(groups=True), "attrs.groups"),
    "float for a number": (lambda d: node(d, "conv")["attrs"].update(groups=1.0), "attrs.groups"),
    "groups do not fit": (lambda d: node(d, "conv")["attrs"].update(groups=2), "does not fit an input"),
    "missing attribute": (lambda d: node(d, "conv")["attrs"].pop("groups"), "must hold exactly"),
    "unknown attribute": (lambda d: node(d, "conv")["attrs"].update(x=1), "must hold exactly"),
    "unhashable activation": (lambda d: node(d, "relu")["attrs"].update(kind=[]), "attrs.kind"),
    "weight missing": (lambda d: node(d, "conv").pop("weight"), "needs a weight"),
    "weight of another": (lambda d: node(d, "conv").update(weight="head.weight"), "conv"),
    "bias is sparse": (lambda d: node(d, "conv").update(bias="conv.weight"), "dense|used by no node"),
    "view does not fit": (lambda d: node(d, "flat")["attrs"].update(shape=[-1, 5]), "cannot be viewed"),
    "two free extents": (lambda d: node(d, "flat")["attrs"].update(shape=[-1, -1]), "cannot be viewed"),
    "batch lost": (
        lambda d: node(d, "flat")["attrs"].update(shape=[1, -1]),
        "for 3 inputs|node 'shifted'|node 'head'",
    ),
    "forbidden ATen": (
        lambda d: node(d, "turned")["attrs"].update(target="aten.set_.default"),
        "not an allowed",
    ),
    "no ATen": (lambda d: node(d, "turned")["attrs"].update(target="os.system"), "not an allowed"),
    "bad ATen arguments": (
        lambda d: node(d, "turned")["attrs"].update(args=[{"value": "x"}, [9, 9]]),
        "turned",
    ),
    "hidden value": (
        lambda d: node(d, "shifted")["attrs"].update(args=[{"value": "x"}, 1]),
        "inputs must list",
    ),
    "device argument": (
        lambda d: node(d, "turned")["attrs"].update(kwargs={"device": "cuda"}),
        "not allowed",
    ),
    "keyword that looks wrapped": (
        lambda d: node(d, "turned")["attrs"].update(kwargs={"batch": [1]}),
        "node 'turned'",
    ),
    "deep arguments": (lambda d: node(d, "turned")["attrs"].update(args=[[[[[[[1]]]]]]]), "nested deeper"),
    "output unknown": (lambda d: d["graph"].update(output="nothing"), "not the name of a node"),
    "output is input": (lambda d: d["graph"].update(output="x"), "not the name of a node"),
    "input too large": (lambda d: d["graph"]["input"].update(shape=[3, 1 << 30, 8]), "input.shape"),
    "negative input": (lambda d: d["graph"]["input"].update(shape=[3, -8, 8]), "input.shape"),
    "class missing": (lambda d: d["classes"].pop(), "classes lists 3"),
    "class no string": (lambda d: d.update(classes=[1, 2, 3, 4]), "list of strings"),
    "tensor not listed": (lambda d: d["tensors"].pop("shift"), "does not list"),
    "tensor missing": (
        lambda d: d["tensors"].update(more={"layout": "dense", "shape": [2]}),
        "'more' is missing",
    ),
    "other shape": (lambda d: d["tensors"]["shift"].update(shape=[5]), "'shift'"),
    "other layout": (lambda d: d["tensors"]["shift"].update(layout="csr"), "'shift"),
    "unknown layout": (lambda d: d["tensors"]["shift"].update(layout="coo"), "csr or dense"),
    "expansion": (
        lambda d: d["tensors"]["conv.weight"].update(shape=[6, 1 << 30]),
        "more weights than the file",
    ),
    "overflow": (
        lambda d: d["tensors"]["conv.weight"].update(shape=[1 << 31] * 8),
        "more weights than the file",
    ),
    "columns out of range": (
        lambda d: d["tensors"]["conv.weight"].update(shape=[6, 3, 3, 2]),
        "column lies outside",
    ),
    "rows do not fit": (
        lambda d: d["tensors"]["conv.weight"].update(shape=[7, 3, 3, 3]),
        "rowptr must have 8",
    ),
    "nnz": (lambda d: d["tensors"]["conv.weight"].update(nnz=1), "nnz is 1"),
    "provenance": (lambda d: d.update(provenance=[1]), "provenance must be"),
}


@pytest.mark.parametrize("attack", sorted(CONFIG_ATTACKS))
def test_altered_configuration(directory: Path, attack: str) -> None:
    change, message = CONFIG_ATTACKS[attack]
    edit_config(directory, change)
    with pytest.raises(ModelFileError, match=message):
        load(directory)


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


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_files(directory: Path, name: str, kept: float) -> None:
    data = (directory / name).read_bytes()
    (directory / name).write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ModelFileError, match=name):
        load(directory)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(ModelFileError, match=name):
        load(directory)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_pipes_and_folders_are_no_files(directory: Path, name: str) -> None:
    (directory / name).unlink()
    os.mkfifo(directory / name)
    with pytest.raises(ModelFileError, match="regular file"):
        load(directory)
    (directory / name).unlink()
    (directory / name).mkdir()
    with pytest.raises(ModelFileError, match="regular file"):
        load(directory)


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="not a model directory"):
        load(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="not a model directory"):
        load(tmp_path / "file")
    with pytest.raises(ModelFileError):
        load("zero\0byte")


RAW_CONFIGS = {
    "empty": b"",
    "not UTF-8": b"\xff\xfe{}",
    "list": b"[]",
    "deep": b'{"format":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "duplicate key": b'{"format": "finepruning", "format": "finepruning"}',
    "NaN": b'{"format": "finepruning", "version": NaN}',
    "huge float": b'{"format": "finepruning", "version": 1e999}',
    "huge integer": b'{"format": "finepruning", "version": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("case", sorted(RAW_CONFIGS))
def test_documents_that_are_no_configuration(directory: Path, case: str) -> None:
    (directory / "config.json").write_bytes(RAW_CONFIGS[case])
    with pytest.raises(ModelFileError, match=r"config\.json"):
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


def test_a_directory_of_links_is_read(directory: Path, tmp_path: Path) -> None:
    """Download caches keep a directory of links to files elsewhere."""
    (tmp_path / "links").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "links" / name).symlink_to(directory / name)
    assert load(tmp_path / "links").graph == load(directory).graph
