"""Writes a run's report files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finepruning.files import replace_file
from finepruning.report.html import render_html
from finepruning.report.markdown import render
from finepruning.report.pareto_plot import plot

BENCH = "bench.json"
SENSITIVITY = "sensitivity.json"


def write(run_dir: Path, report: dict[str, Any]) -> None:
    """Write ``report.md``, ``report.html`` and ``pareto.png`` into the run directory.

    Args:
        run_dir: existing directory; its trials, example images, ``bench.json`` and ``sensitivity.json`` are
            used where they exist.
        report: as `finepruning.compress.compress` returns it.
    """
    plot(report, run_dir / "pareto.png")
    replace_file(run_dir / "report.md", render(report, run_dir).encode())
    replace_file(run_dir / "report.html", render_html(report, run_dir, _material(run_dir)).encode())


def _material(run_dir: Path) -> dict[str, Any]:
    """What lies beside report.json. None of it is needed: what cannot be read is left out."""
    return {
        "trials": _lines(run_dir / "trials.jsonl"),
        "bench": _object(run_dir / BENCH),
        "sensitivity": _object(run_dir / SENSITIVITY),
        "pictures": {
            int(file.stem): file.read_bytes()
            for file in sorted((run_dir / "examples").glob("*.jpg"))
            if file.stem.isdecimal()
        },
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def _object(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
