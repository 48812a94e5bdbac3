"""`finepruning inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finepruning.commands.options import DEFAULT_RUN, Debug
from finepruning.commands.output import AsJson, print_json


def command(
    model: Annotated[Path, typer.Argument(help="A model directory, or a run.")] = DEFAULT_RUN,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what a model file holds, layer by layer.

    [dim]finepruning inspect runs/latest[/dim]
    [dim]finepruning inspect model/ --json[/dim]
    """
    from finepruning.report.inspection import describe, show
    from finepruning.report.places import model_directory

    directory, _ = model_directory(model)
    content = describe(directory)
    if as_json:
        print_json(content)
        return
    from finepruning.report.terminal import make_console

    show(content, make_console())
