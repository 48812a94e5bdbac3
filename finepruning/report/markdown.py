"""report.md: what was asked and what came out, for the terminal and for code review."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from finepruning.report.asked import accuracy_asked, density_asked, latency_asked, size_asked
from finepruning.report.text import (
    beginning_text,
    density_text,
    duration_text,
    percent_text,
    shape_text,
    size_text,
)

_PHASES = (
    ("dense", "dense fine-tuning"),
    ("search", "search"),
    ("fine_tune", "fine-tuning with surgery"),
    ("final", "final fine-tuning"),
    ("export", "export and checks"),
    ("total", "total"),
)


def render(report: dict[str, Any], run_dir: Path) -> str:
    """The whole report as Markdown.

    Args:
        report: as `compress` returns it. run_dir: the run directory, for the line that loads the model.
    """
    parts = [
        f"# {report['name']}",
        _headline(report),
        "![accuracy against density](pareto.png)",
        "## What was asked",
        _table(("option", "value"), sorted(report["config"].items())),
        "## What came out",
        _outcome(report),
        "## Rounds",
        _rounds(report["rounds"]),
        "## Accuracy against density",
        "Best candidate at each density, measured on the validation split.",
        _pareto(report["pareto"]),
        "## Layers",
        _layers(report["layers"]),
        "## Time",
        _times(report["seconds"]),
        "## Use it",
        _usage(run_dir),
        "## Where it ran",
        _table(("what", "value"), sorted(report["environment"].items())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _headline(report: dict[str, Any]) -> str:
    change = report["accuracy"] - report["dense_accuracy"]
    return (
        f"{report['model'] or 'The built-in network'} on {report['data'] or 'the built-in textures'}: "
        f"**{percent_text(report['density'], 2)} of the weights** keep "
        f"**{percent_text(report['accuracy'])}** test "
        f"accuracy (dense: {percent_text(report['dense_accuracy'])}, {100 * change:+.1f} points) in "
        f"**{size_text(report['bytes_sparse'])}** instead of {size_text(report['bytes_dense'])}. "
        f"{report['date']}, seed {report['seed']}. {beginning_text(report)}"
    ).rstrip()


def _outcome(report: dict[str, Any]) -> str:
    images, latency, drop = report["images"], latency_asked(report), accuracy_asked(report)
    return _table(
        ("", "dense", "compressed"),
        [
            ("test accuracy", percent_text(report["dense_accuracy"]), percent_text(report["accuracy"])),
            ("through the sparse engine", "", percent_text(report["sparse_accuracy"])),
            *_robust(report.get("robust")),
            ("density", "1", f"{density_text(report['density'])} ({density_asked(report)})"),
            ("file", size_text(report["bytes_dense"]), size_asked(report)),
            *([("validation accuracy", *drop)] if drop else []),
            *([(f"latency ({latency[2]})", *latency[:2])] if latency else []),
        ],
    ) + (
        f"\n\n{len(report['classes'])} classes; {images['train']} images for training, "
        f"{images['validation']} for validation, {images['test']} for the test, "
        "which were looked at once, at the end."
    )


def _robust(found: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    if found is None:
        return []
    name = f"test accuracy, images changed by {found['epsilon']:g} of 255 (PGD, {found['steps']} steps)"
    return [(name, percent_text(found["dense_accuracy"]), percent_text(found["accuracy"]))]


def _rounds(rounds: Sequence[dict[str, Any]]) -> str:
    rows = [
        (
            entry["round"],
            density_text(entry["budget"]),
            entry["trials"],
            f"{entry['baseline_loss']:.4f}" if entry.get("baseline_loss") is not None else "-",
            f"{entry['best_loss']:.4f}" if entry.get("best_loss") is not None else "-",
            percent_text(entry["validation_accuracy"]),
            density_text(entry["density"]),
            entry.get("spliced", "-"),
        )
        for entry in rounds
    ]
    head = (
        "round",
        "budget",
        "trials",
        "loss, global magnitude",
        "loss, best found",
        "accuracy after",
        "density after",
        "spliced",
    )
    note = (
        "Losses are those of the pruned network before it is fine-tuned again, on validation images; "
        "accuracy is measured after. Spliced counts weights that were dropped and came back."
    )
    return _table(head, rows) + "\n\n" + note if rows else ""


def _pareto(points: Sequence[dict[str, Any]]) -> str:
    rows = [
        (density_text(p["density"]), _number(p["loss"]), percent_text(p.get("accuracy")), p["kind"])
        for p in pareto_front(points)
    ]
    return _table(("density", "loss", "accuracy", "kind"), rows)


def pareto_front(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points that no other beats in both density and quality, by falling density.

    Quality is accuracy where every point has one, else (negative) loss.
    """
    points = [p for p in points if p.get("loss") is not None or p.get("accuracy") is not None]
    by_accuracy = all(p.get("accuracy") is not None for p in points)
    front: list[dict[str, Any]] = []

    def quality(point: dict[str, Any]) -> float:
        return float(point["accuracy"] if by_accuracy else -point["loss"])

    for point in sorted(points, key=lambda p: (p["density"], -quality(p))):
        if not front or quality(point) > quality(front[-1]):
            front.append(point)
    return front[::-1]


def best_by_density(points: Iterable[dict[str, Any]], measure: str) -> list[dict[str, Any]]:
    """The best point of each density, by falling density; ``measure`` is "accuracy" or "loss"."""
    best: dict[float, dict[str, Any]] = {}
    for point in sorted(points, key=lambda p: p[measure], reverse=measure == "loss"):
        best[point["density"]] = point
    return [best[density] for density in sorted(best, reverse=True)]


def _layers(layers: Sequence[dict[str, Any]]) -> str:
    rows = [
        (
            f"`{entry['name']}`",
            shape_text(entry["shape"]),
            f"{entry['size']:,}",
            f"{entry['nnz']:,}",
            density_text(entry["density"]),
            "█" * round(20 * entry["density"]) or "▏",
        )
        for entry in layers
    ]
    size, nnz = sum(entry["size"] for entry in layers), sum(entry["nnz"] for entry in layers)
    rows.append(("total", "", f"{size:,}", f"{nnz:,}", density_text(nnz / size if size else None), ""))
    return _table(("layer", "shape", "weights", "kept", "density", ""), rows)


def _times(seconds: dict[str, float]) -> str:
    known = dict(_PHASES)
    rest = [(name, name.replace("_", " ")) for name in seconds if name not in known]
    rows = [(label, duration_text(seconds[name])) for name, label in (*rest, *_PHASES) if name in seconds]
    return _table(("phase", "time"), rows)


def _usage(run_dir: Path) -> str:
    return (
        "```python\n"
        "import finepruning\n\n"
        f'model = finepruning.SparseModel.from_pretrained("{run_dir / "model"}")\n'
        "logits = model(images)  # float32 [n, 3, h, w], prepared as model.preprocessing says\n"
        "names = [model.classes[i] for i in logits.argmax(1)]\n"
        "```\n\n"
        f"`finepruning bench {run_dir}` measures what it gains on this machine; "
        f"`finepruning inspect {run_dir}` lists its layers."
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
