"""A small model directory, and ways to alter it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from finepruning.sparse.csr import CSR
from finepruning.sparse.graph import Graph, Node
from finepruning.sparse.storage import StoredModel

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
