"""The model card: README.md of a published model, with figures counted from the model itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finepruning.errors import ArgumentError
from finepruning.sparse.csr import CSR
from finepruning.sparse.storage import StoredModel

_SMALLEST_DIFFERENCE = 1e-3
"""Between the density of a model and that of its report: values of 16 bits may round to zero."""


def render_card(
    stored: StoredModel,
    directory: Path,
    repo_id: str,
    *,
    report: Mapping[str, Any] | None = None,
    license: str | None = None,
) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads.

    Args:
        stored: the model. directory: where it is saved, for the size of its files.
        repo_id: ``user/name``, for the lines that load it.
        report: ``report.json`` of the run that made the model; its accuracies are then named.
        license: identifier such as "apache-2.0".

    Raises:
        ArgumentError: the report is of another model, or of another form.
    """
    layers = list(_layers(stored))
    size, kept = sum(layer[2] for layer in layers), sum(layer[3] for layer in layers)
    density = kept / size if size else 1.0
    file_bytes = sum(file.stat().st_size for file in directory.iterdir() if file.is_file())
    figures = [
        ("weights kept", f"{kept:,} of {size:,} (density {density:.4f})"),
        ("files", f"{file_bytes:,} bytes"),
        ("input", "x".join(map(str, stored.graph.input_shape))),
    ]
    if report is not None:
        figures += _measured(report, stored, density)
    parts = [
        _front_matter(license),
        f"# {repo_id.rpartition('/')[2]}",
        f"A pruned image classifier that keeps {100 * density:.2f} % of the weights of its convolutions and "
        "fully connected layers, stored sparse. It runs with `finepruning`, and needs neither the original "
        "network's code nor pickle.",
        _table(("", ""), figures),
        "## Use it\n\n" + _usage(stored, repo_id),
        "## Layers\n\n"
        + _table(
            ("layer", "shape", "weights", "kept", "density"),
            [
                (f"`{name}`", "x".join(map(str, shape)), f"{n:,}", f"{nnz:,}", f"{nnz / n:.4f}")
                for name, shape, n, nnz in layers
            ],
        ),
    ]
    for title, content in (
        ("Classes", stored.classes),
        ("Preprocessing", stored.preprocessing),
        ("Where it came from", stored.provenance),
    ):
        if content is not None:
            parts.append(f"## {title}\n\n```json\n{json.dumps(content, ensure_ascii=False)}\n```")
    return "\n\n".join(parts) + "\n"


def _layers(stored: StoredModel) -> Iterator[tuple[str, Sequence[int], int, int]]:
    """(name, shape, weights, nonzeros) of every convolution and fully connected layer."""
    for node in stored.graph.nodes:
        if node.weight is None:
            continue
        weight = stored.tensors[node.weight]
        nonzeros = weight.nnz if isinstance(weight, CSR) else int(weight.count_nonzero())
        size = weight.rows * weight.columns if isinstance(weight, CSR) else weight.numel()
        yield node.name, tuple(weight.shape), size, nonzeros


def _measured(report: Mapping[str, Any], stored: StoredModel, density: float) -> list[tuple[str, str]]:
    try:
        classes, found = report["classes"], float(report["density"])
        if classes != list(stored.classes or ()) or abs(found - density) > _SMALLEST_DIFFERENCE:
            raise ArgumentError(
                f"report is of another model: {len(classes)} classes at density {found:.4f}, but this model "
                f"has {len(stored.classes or ())} at {density:.4f}; give the report of the run that made it"
            )
        return [
            (
                "test accuracy",
                f"{100 * report['sparse_accuracy']:.2f} % of {report['images']['test']} images",
            ),
            ("test accuracy before pruning", f"{100 * report['dense_accuracy']:.2f} %"),
            ("dense file", f"{report['bytes_dense']:,} bytes"),
        ]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"report is not the content of a run's report.json ({error!r})") from None


def _front_matter(license: str | None) -> str:
    lines = [
        "library_name: finepruning",
        "pipeline_tag: image-classification",
        "tags: [finepruning, pruning, sparse]",
    ]
    if license is not None:
        lines.append(f"license: {json.dumps(license)}")
    return "\n".join(["---", *lines, "---"])


def _usage(stored: StoredModel, repo_id: str) -> str:
    lines = ["import finepruning"]
    shape = ", ".join(map(str, stored.graph.input_shape))
    prepared = stored.preprocessing is not None
    if prepared:
        lines = [
            "from PIL import Image",
            "",
            *lines,
            "from finepruning.predict import preprocessing_of",
        ]
    lines += ["", f"model = finepruning.SparseModel.from_pretrained({json.dumps(repo_id)})"]
    if prepared:
        lines += [
            'x = preprocessing_of(model)(Image.open("image.jpg")).unsqueeze(0)',
            f"logits = model(x)  # x: float32 [batch, {shape}]",
        ]
    else:
        lines += [f"logits = model(x)  # x: float32 [batch, {shape}]"]
    if stored.classes is not None:
        lines += ["print(model.classes[logits.argmax(1)])"]
    return "```python\n" + "\n".join(lines) + "\n```"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [list(head), ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)
