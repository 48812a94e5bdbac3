"""`finepruning compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from finepruning.commands.options import Debug


def command(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs, at least two.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    debug: Debug = False,
) -> None:
    """Lay runs side by side: what they came to, and where their options differ.

    [dim]finepruning compare runs/budget runs/random[/dim]
    """
    from finepruning.report.comparison import compare, show

    content = compare(runs)
    if as_json:
        typer.echo(json.dumps(content, indent=2))
        return
    from finepruning.report.terminal import make_console

    show(content, make_console())
