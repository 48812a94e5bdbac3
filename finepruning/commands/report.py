"""`finepruning report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from finepruning.commands.options import Debug


def command(
    run: Annotated[Path, typer.Argument(help="A finished run.")] = Path("runs/latest"),
    test: Annotated[
        bool, typer.Option("--test", help="Also look at the test images again, for what is confused.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Write a finished run's report again: report.html, report.md and pareto.png.

    [dim]finepruning report runs/latest[/dim]
    """
    from finepruning.rendering import rewrite

    report = rewrite(run, test=test, say=lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        typer.echo(run / "report.html")
