"""Finished runs side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from finepruning.errors import ArgumentError
from finepruning.report.places import read_report
from finepruning.report.terminal import print_table
from finepruning.report.text import density_text, duration_text, percent_text, size_text
from finepruning.report.writer import BENCH

_NOT_OPTIONS = ("out", "workers", "device", "tensorboard")


def compare(runs: Sequence[Path]) -> dict[str, Any]:
    """What finished runs came to and where their options differ; JSON-ready.

    Returns:
        ``runs``: one entry a run (name, model, data, seed, target_density, density, dense_accuracy, accuracy,
        points, bytes_dense, bytes_sparse, seconds, median_ms and speedup of its first bench row or None);
        ``differences``: option -> its value in each run; ``same_test``: whether all were tested on equally
        many images of the same classes.

    Raises:
        ArgumentError: fewer than two runs, or one that has not finished.
    """
    if len(runs) < 2:
        raise ArgumentError("compare takes at least two runs, such as runs/a runs/b")
    reports = [_report(run) for run in runs]
    return {
        "runs": [_entry(run, report) for run, report in zip(runs, reports, strict=True)],
        "differences": _differences([report["config"] for report in reports]),
        "same_test": all(
            (r["classes"], r["images"]["test"]) == (reports[0]["classes"], reports[0]["images"]["test"])
            for r in reports
        ),
    }


def _report(run: Path) -> dict[str, Any]:
    report = read_report(run)
    if report is None:
        if (run / "config.yaml").is_file():
            raise ArgumentError(f"{run} has not finished; finish it with compress --resume {run}")
        raise ArgumentError(f"{run} is no finished run: it has no report.json")
    return report


def _entry(run: Path, report: dict[str, Any]) -> dict[str, Any]:
    same = ("name", "model", "data", "seed", "target_density", "density", "dense_accuracy", "accuracy")
    try:
        return {
            "path": str(run),
            **{name: report[name] for name in (*same, "bytes_dense", "bytes_sparse")},
            "points": 100 * (report["accuracy"] - report["dense_accuracy"]),
            "seconds": report["seconds"]["total"],
            **_speed(run),
        }
    except KeyError as error:
        raise ArgumentError(f"{run / 'report.json'} has no {error}; it was made by another version") from None


def _speed(run: Path) -> dict[str, Any]:
    try:
        row = json.loads((run / BENCH).read_text(encoding="utf-8"))["rows"][0]
        return {"batch": row["batch"], "median_ms": row["median_ms"], "speedup": row.get("speedup")}
    except (OSError, ValueError, LookupError, TypeError):
        return {"batch": None, "median_ms": None, "speedup": None}


def _differences(configs: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for config in configs for name in config if name not in _NOT_OPTIONS)
    values = {name: [config.get(name) for config in configs] for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def show(content: dict[str, Any], console: Console) -> None:
    """Print `compare`'s content."""
    runs = content["runs"]
    timed = any(entry["median_ms"] is not None for entry in runs)
    rows = [
        (
            entry["name"],
            density_text(entry["density"]),
            percent_text(entry["accuracy"]),
            percent_text(entry["dense_accuracy"]),
            f"{entry['points']:+.1f}",
            size_text(entry["bytes_sparse"]),
            "-" if entry["median_ms"] is None else f"{entry['median_ms']:.3g} ms",
            duration_text(entry["seconds"]),
        )
        for entry in runs
    ]
    columns = ["run", "density", "accuracy", "dense", "points", "file"]
    if timed:
        batches = {entry["batch"] for entry in runs if entry["batch"] is not None}
        columns.append(f"batch {'/'.join(map(str, sorted(batches)))}")
    columns.append("took")
    cells = [row if timed else (*row[:6], row[7]) for row in rows]
    print_table(console, columns, cells, optional=("took", "points"))
    console.print()
    if content["differences"]:
        print_table(
            console,
            ("option", *(entry["name"] for entry in runs)),
            [(name, *(_cell(value) for value in values)) for name, values in content["differences"].items()],
        )
    else:
        console.print("The options are the same.")
    if not content["same_test"]:
        console.print("Their test images differ, so their accuracies cannot be compared.")


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)
