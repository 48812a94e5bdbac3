"""Writes a run's report files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finepruning.report.markdown import render
from finepruning.report.pareto_plot import plot


def write(run_dir: Path, report: dict[str, Any]) -> None:
    """Write ``report.md`` and ``pareto.png`` into the run directory.

    Args:
        run_dir: existing directory. report: as `finepruning.compress.compress` returns it.
    """
    plot(report, run_dir / "pareto.png")
    (run_dir / "report.md").write_text(render(report, run_dir), encoding="utf-8")
