"""`finepruning export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finepruning.commands.options import DEFAULT_RUN, Debug
from finepruning.commands.output import AsJson, print_json


def command(
    *,
    model: Annotated[Path, typer.Argument(help="A model directory, or a run.")] = DEFAULT_RUN,
    to: Annotated[
        str,
        typer.Option("--to", help="torch (a torch.export program), onnx, or state_dict (safetensors)."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write.", show_default="NAME.pt2, .onnx, ..."),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a model for other runtimes, with its zeros filled in: they run it dense.

    [dim]finepruning export runs/latest --to onnx -o photos.onnx[/dim]
    [dim]finepruning export model/ --to state_dict --json[/dim]
    """
    from finepruning.export import SUFFIXES, export
    from finepruning.report.places import model_directory
    from finepruning.report.text import size_text

    directory, run = model_directory(model)
    name = (run or directory).resolve().name + SUFFIXES.get(to, "")
    result = export(directory, to, Path(name) if output is None else output)
    if as_json:
        print_json(result)
        return
    typer.echo(f"wrote {result['output']}: {size_text(result['bytes'])}, dense with zeros")
    typer.echo(f"the sparse model takes {size_text(result['model_bytes'])} and needs finepruning to run")
    if result["checked"] is not None:
        typer.echo(f"outputs compared in {result['checked']}: {result['relative_error']:.1e} apart")
    elif to == "onnx":
        typer.echo("outputs not compared: ONNX Runtime is not installed")
