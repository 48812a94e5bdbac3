"""The model directory: ``config.json`` and ``model.safetensors`` (specified in docs/file-format.md)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from finepruning.errors import ArgumentError, CaptureError, ModelFileError
from finepruning.sparse import aten
from finepruning.sparse.container import parse_json, parse_tensors, read_file, tensors_bytes, write_tensors
from finepruning.sparse.csr import CSR
from finepruning.sparse.graph import Graph, fields, from_json, short, to_json
from finepruning.sparse.shapes import Stored, infer
from finepruning.sparse.validate import read_stored

FORMAT = "finepruning"
VERSION = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
MAX_CONFIG = 16 << 20
_FREE = ("classes", "preprocessing", "provenance")


@dataclass(frozen=True)
class StoredModel:
    """Everything a model directory holds.

    Attributes:
        graph: the operations. tensors: what they refer to, by name.
        classes: class names in the order of the logits, or None.
        preprocessing: how to make an input of an image, or None (free-form JSON object).
        provenance: where the model came from, or None (free-form JSON object).
    """

    graph: Graph
    tensors: Mapping[str, Stored]
    classes: tuple[str, ...] | None = None
    preprocessing: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] | None = None


def save(model: StoredModel, path: str | os.PathLike[str]) -> None:
    """Write a model directory. A new directory appears complete or not at all.

    In an existing directory the two files are replaced one after the other; a reader between the two
    replacements gets an error (their checksum differs), never a mixture. Other files stay.

    Raises:
        CaptureError: the graph holds an operation that files may not name.
        ArgumentError: ``path`` cannot be written, or classes, preprocessing or provenance are no JSON.
    """
    target = Path(path)
    for node in model.graph.nodes:
        if node.op == "aten" and node.attrs["target"] not in aten.STORABLE:
            raise CaptureError(
                f"{node.name} runs {node.attrs['target']}, which a model file may not name; the model runs "
                f"in this process but cannot be saved. Rewrite that part of the network with other operations"
            )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_dir():
            raise ArgumentError(f"{target} exists and is no directory; choose another path")
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            _write(model, staging)
            if target.is_dir():
                for name in (WEIGHTS, CONFIG):
                    os.replace(staging / name, target / name)
                _sync(target)
            else:
                staging.chmod(0o777 & ~_umask())
                os.rename(staging, target)
            _sync(target.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise ArgumentError(f"{target} cannot be written: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot sync a directory
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(model: StoredModel, directory: Path) -> None:
    flat, table = _flat(model)
    digest = write_tensors(flat, directory / WEIGHTS)
    config = directory / CONFIG
    with config.open("w", encoding="utf-8") as file:
        file.write(_document(model, table, digest))
        file.flush()
        os.fsync(file.fileno())


def stored_bytes(model: StoredModel) -> int:
    """Bytes of the two files that `save` would write; only the sizes of the tensors matter."""
    flat, table = _flat(model)
    text = _document(model, table, hashlib.sha256().hexdigest())
    return tensors_bytes(flat) + len(text.encode("utf-8"))


def _flat(model: StoredModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of model.safetensors, and the table of config.json that says what they are."""
    flat: dict[str, Tensor] = {}
    table: dict[str, Any] = {}
    for name, stored in model.tensors.items():
        entry: dict[str, Any] = {
            "layout": "csr" if isinstance(stored, CSR) else "dense",
            "shape": list(stored.shape),
        }
        if isinstance(stored, CSR):
            flat.update(
                {f"{name}.values": stored.values, f"{name}.col": stored.col, f"{name}.rowptr": stored.rowptr}
            )
            entry["nnz"] = stored.nnz
        else:
            flat[name] = stored
        table[name] = entry
    return flat, table


def _document(model: StoredModel, table: Mapping[str, Any], digest: str) -> str:
    document = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": digest,
        "graph": to_json(model.graph),
        "tensors": table,
        "classes": None if model.classes is None else list(model.classes),
        "preprocessing": model.preprocessing,
        "provenance": model.provenance,
    }
    try:
        return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"classes, preprocessing and provenance must be plain JSON: {error}") from None


def load(path: str | os.PathLike[str]) -> StoredModel:
    """Read and check a model directory.

    Raises:
        ModelFileError: naming the directory, the file, the tensor or key, and the rule that it breaks.
    """
    directory = Path(path)
    name = short(str(directory), 300)
    if not _is_directory(directory):
        raise ModelFileError(f"{name} is not a model directory: it does not exist or is no directory")
    try:
        return _load(directory)
    except ModelFileError as error:
        if str(directory) in str(error):
            raise
        raise ModelFileError(f"{name}: {error}") from error


def _load(directory: Path) -> StoredModel:
    document = parse_json(read_file(directory / CONFIG, MAX_CONFIG), CONFIG)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ModelFileError(f"{directory / CONFIG} does not describe a finepruning model")
    if document.get("version") != VERSION:
        raise ModelFileError(
            f"{directory / CONFIG} has format version {short(document.get('version'))}; "
            f"this release reads {VERSION}"
        )
    required = {"format": str, "version": int, "sha256": str, "graph": dict, "tensors": dict}
    config = fields(document, "the document", {**required, **dict.fromkeys(_FREE, object)})
    for key in ("preprocessing", "provenance"):
        if not isinstance(config[key], dict | None):
            raise ModelFileError(f"config.json: {key} must be null or an object, not {short(config[key])}")
    graph = from_json(config["graph"])
    for node in graph.nodes:
        if node.op == "aten":
            aten.check(node.attrs, node.inputs, f"node {short(node.name)}")
    data = read_file(directory / WEIGHTS)
    tensors = read_stored(config["tensors"], parse_tensors(data, WEIGHTS), len(data))
    digest = hashlib.sha256(data).hexdigest()
    if digest != config["sha256"]:
        raise ModelFileError(
            f"{directory / WEIGHTS} was altered: its SHA-256 is {digest}, "
            f"config.json says {short(config['sha256'])}"
        )
    _check_use(graph, tensors)
    classes = _check_classes(config["classes"], graph, tensors)
    return StoredModel(graph, tensors, classes, config["preprocessing"], config["provenance"])


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # names that are too long or hold a zero byte, folders one may not search
        return False


def _check_use(graph: Graph, tensors: Mapping[str, Stored]) -> None:
    """Every reference has a tensor of the right kind, and every tensor a reference."""
    used = graph.tensor_names()
    for name in sorted(used - set(tensors)):
        raise ModelFileError(
            f"config.json: graph refers to tensor {short(name)}, which tensors does not list"
        )
    for name in sorted(set(tensors) - used):
        raise ModelFileError(f"config.json: tensor {short(name)} is used by no node")
    for node in graph.nodes:
        for reference in (node.weight, node.bias):
            stored = None if reference is None else tensors[reference]
            if isinstance(stored, Tensor) and not stored.is_floating_point():
                raise ModelFileError(
                    f"tensor {short(reference)} must be floating-point for node {short(node.name)}"
                )
        if node.bias is not None and isinstance(tensors[node.bias], CSR):
            raise ModelFileError(
                f"tensor {short(node.bias)} must be dense: it is the bias of {short(node.name)}"
            )


def _check_classes(classes: Any, graph: Graph, tensors: Mapping[str, Stored]) -> tuple[str, ...] | None:
    """Infer all shapes, for two batch sizes, and compare the result with the number of classes."""
    result: tuple[int, ...] = ()
    for batch in (1, 3):
        result, _ = infer(graph, tensors, batch)[graph.output]
        if not result or result[0] != batch:
            raise ModelFileError(f"config.json: graph returns shape {short(result)} for {batch} inputs")
    if classes is None:
        return None
    if not isinstance(classes, list) or not all(isinstance(item, str) for item in classes):
        raise ModelFileError("config.json: classes must be null or a list of strings")
    if len(result) != 2 or len(classes) != result[1]:
        raise ModelFileError(
            f"config.json: classes lists {len(classes)} names, "
            f"but the graph returns {short(result[1:])} an input"
        )
    return tuple(classes)
