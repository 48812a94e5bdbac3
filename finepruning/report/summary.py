"""The short tables that end a run on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from finepruning.report.terminal import print_table
from finepruning.report.text import density_text, duration_text, percent_text, size_text


def show_summary(report: dict[str, Any], console: Console) -> None:
    """Dense against compressed, and where everything lies."""
    console.print()
    print_table(
        console,
        ("", "dense", "compressed"),
        [
            ("test accuracy", percent_text(report["dense_accuracy"]), percent_text(report["accuracy"])),
            ("density", "1", density_text(report["density"])),
            ("file", size_text(report["bytes_dense"]), size_text(report["bytes_sparse"])),
        ],
    )
    console.print()
    out = Path(report["config"]["out"])
    show_places(out, console)
    console.print(f"took    {duration_text(report['seconds']['total'])}", soft_wrap=True)


def show_places(run_dir: Path, console: Console) -> None:
    """Where the model, the report and the plot of a run lie."""
    console.print(f"model   {run_dir / 'model'}", soft_wrap=True)
    console.print(f"report  {run_dir / 'report.html'}", soft_wrap=True)
    console.print(f"plot    {run_dir / 'pareto.png'}", soft_wrap=True)


def show_dry_run(plan: dict[str, Any], console: Console) -> None:
    """What `compress` would do."""
    for key, value in plan.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            console.print(f"\n[bold]{key.replace('_', ' ')}[/bold]")
            print_table(console, list(value[0]), [[_cell(item) for item in row.values()] for row in value])
        elif isinstance(value, dict):
            console.print(f"\n[bold]{key.replace('_', ' ')}[/bold]")
            for name, item in value.items():
                console.print(f"  {name}: {_cell(item)}", soft_wrap=True, markup=False)
        else:
            console.print(f"{key.replace('_', ' ')}: {_cell(value)}", soft_wrap=True, markup=False)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    return "-" if value is None else str(value)
