"""`finepruning report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finepruning.commands.options import DEFAULT_RUN, Debug
from finepruning.commands.output import AsJson, print_json


def command(
    run: Annotated[Path, typer.Argument(help="A finished run.")] = DEFAULT_RUN,
    test: Annotated[
        bool, typer.Option("--test", help="Also look at the test images again, for what is confused.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a finished run's report again: report.html, report.md and pareto.png.

    [dim]finepruning report runs/latest[/dim]
    [dim]finepruning report runs/latest --test --json[/dim]
    """
    from finepruning.rendering import rewrite

    report = rewrite(run, test=test, say=lambda text: typer.echo(text, err=True))
    if as_json:
        print_json(report)
    else:
        typer.echo(run / "report.html")
