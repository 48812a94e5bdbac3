"""`finepruning compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finepruning.commands.options import Debug
from finepruning.commands.output import AsJson, print_json


def command(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs, at least two.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Lay runs side by side: what they came to, and where their options differ.

    [dim]finepruning compare runs/budget runs/random[/dim]
    [dim]finepruning compare runs/* --json[/dim]
    """
    from finepruning.report.comparison import compare, show

    content = compare(runs)
    if as_json:
        print_json(content)
        return
    from finepruning.report.terminal import make_console

    show(content, make_console())
