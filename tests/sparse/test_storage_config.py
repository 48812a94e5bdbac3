"""Altered configurations: each is refused with an error that names the key and the rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_files import edit_config

from finepruning.errors import ModelFileError
from finepruning.sparse.storage import load


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
    "integer that PyTorch keeps for itself": (
        lambda d: node(d, "turned")["attrs"].update(args=[{"value": "x"}, [0, 1, 3, -(1 << 63)]]),
        "outside -2",
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
