"""`finepruning inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from finepruning.commands.options import Debug


def command(
    model: Annotated[Path, typer.Argument(help="A model directory, or a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: Debug = False,
) -> None:
    """Show what a model file holds, layer by layer.

    [dim]finepruning inspect runs/latest[/dim]
    """
    from finepruning.report.inspection import describe, show
    from finepruning.report.places import model_directory

    directory, _ = model_directory(model)
    content = describe(directory)
    if as_json:
        typer.echo(json.dumps(content, indent=2))
        return
    from finepruning.report.terminal import make_console

    show(content, make_console())
