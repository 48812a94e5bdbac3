"""What a model directory holds, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from finepruning.report.terminal import SEPARATOR, Row, print_table
from finepruning.report.text import density_text, shape_text, size_text
from finepruning.sparse.csr import CSR
from finepruning.sparse.storage import StoredModel, load


def describe(directory: Path) -> dict[str, Any]:
    """The content of a model directory, JSON-ready; every check of the loader applies.

    Returns:
        ``input_shape``, ``layers`` (name, op, shape, size, nnz, density, bytes, stored_as), ``totals``,
        ``file_bytes``, ``classes``, ``preprocessing``, ``provenance``.

    Raises:
        ModelFileError: the directory holds no valid model.
    """
    model = load(directory)
    layers = _layers(model)
    size, nnz = sum(layer["size"] for layer in layers), sum(layer["nnz"] for layer in layers)
    return {
        "path": str(directory),
        "input_shape": list(model.graph.input_shape),
        "nodes": len(model.graph.nodes),
        "layers": layers,
        "totals": {
            "layers": len(layers),
            "size": size,
            "nnz": nnz,
            "density": nnz / size if size else None,
            "bytes": sum(layer["bytes"] for layer in layers),
            "other_bytes": _bytes_beside(model),
        },
        "file_bytes": sum(file.stat().st_size for file in directory.iterdir() if file.is_file()),
        "classes": None if model.classes is None else list(model.classes),
        "preprocessing": model.preprocessing,
        "provenance": model.provenance,
    }


def _layers(model: StoredModel) -> list[dict[str, Any]]:
    rows = []
    for node in model.graph.nodes:
        if node.weight is None:
            continue
        stored = model.tensors[node.weight]
        if isinstance(stored, CSR):
            size, nnz = stored.rows * stored.columns, stored.nnz
            dtypes = f"{_short(stored.values.dtype)}+{_short(stored.col.dtype)}"
            stored_as = f"CSR {dtypes}"
        else:
            size, nnz = stored.numel(), int(stored.count_nonzero())
            stored_as = f"dense {_short(stored.dtype)}"
        rows.append(
            {
                "name": node.name,
                "op": node.op,
                "shape": list(stored.shape),
                "size": size,
                "nnz": nnz,
                "density": nnz / size,
                "bytes": stored.nbytes,
                "stored_as": stored_as,
            }
        )
    return rows


def _bytes_beside(model: StoredModel) -> int:
    """Biases, constants and whatever else is no layer's weight."""
    weights = {node.weight for node in model.graph.nodes}
    return sum(stored.nbytes for name, stored in model.tensors.items() if name not in weights)


def _short(dtype: Any) -> str:
    names = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "uint16": "u16", "int32": "i32"}
    name = str(dtype).removeprefix("torch.")
    return names.get(name, name)


def show(content: dict[str, Any], console: Console) -> None:
    """Print `describe`'s content as tables."""
    rows: list[Row] = [
        (
            layer["name"],
            layer["op"],
            shape_text(layer["shape"]),
            f"{layer['size']:,}",
            f"{layer['nnz']:,}",
            density_text(layer["density"]),
            size_text(layer["bytes"]),
            layer["stored_as"],
        )
        for layer in content["layers"]
    ]
    totals = content["totals"]
    sums = (f"{totals['size']:,}", f"{totals['nnz']:,}", density_text(totals["density"]))
    rows += [SEPARATOR, ("total", "", "", *sums, size_text(totals["bytes"]), "")]
    print_table(
        console,
        ("layer", "op", "shape", "weights", "kept", "density", "bytes", "stored as"),
        rows,
        left=("op", "stored as"),
        optional=("op", "weights", "stored as"),
    )
    classes = content["classes"]
    facts = {
        "file": f"{content['path']}, {size_text(content['file_bytes'])}",
        "input": shape_text(content["input_shape"]),
        "classes": "not named" if classes is None else f"{len(classes)}: {_listed(classes)}",
        "preprocessing": _pairs(content["preprocessing"]),
        "provenance": _pairs(content["provenance"]),
    }
    console.print()
    for name, value in facts.items():
        console.print(f"{name:<14} {value}", soft_wrap=True, markup=False)


def _listed(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _pairs(content: dict[str, Any] | None) -> str:
    return "none" if not content else ", ".join(f"{name} {value}" for name, value in content.items())
