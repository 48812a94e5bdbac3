"""`finepruning sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from finepruning.commands.options import DEFAULT_RUN, Debug
from finepruning.commands.output import AsJson, check_folder, print_json
from finepruning.errors import ArgumentError


def command(
    model_or_run: Annotated[
        Path, typer.Argument(help="A run (its dense network), or a model directory.")
    ] = DEFAULT_RUN,
    data: Annotated[
        str | None, typer.Argument(help="A folder of images, for a model directory.", show_default=False)
    ] = None,
    densities: Annotated[
        str, typer.Option("--densities", help="Kept shares of a layer, separated by commas.")
    ] = "0.5,0.2,0.1,0.05,0.02",
    images: Annotated[int, typer.Option("--images", help="Validation images to use at most.")] = 512,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="PNG file to draw into.", show_default="sensitivity.png in the run"),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Prune each layer alone and see what it costs.

    [dim]finepruning sensitivity runs/latest[/dim]
    [dim]finepruning sensitivity model/ photos/ --plot layers.png[/dim]
    """
    check_folder("--plot", plot)
    content = _measure(model_or_run, data, _shares(densities), images)
    from finepruning.report import sensitivity as reporting

    if plot is None and (model_or_run / "config.yaml").is_file():
        plot = model_or_run / "sensitivity.png"
    if plot is not None:
        try:
            reporting.plot(content, plot)
        except OSError as error:
            raise ArgumentError(f"{plot}: cannot be written ({error.strerror or error})") from error
    if as_json:
        print_json(content)
        return
    from finepruning.report.terminal import make_console

    reporting.show(content, make_console())
    if plot is not None:
        typer.echo(f"plot    {plot}")


def _measure(path: Path, data: str | None, densities: list[float], images: int) -> dict[str, Any]:
    from finepruning.report.places import model_directory
    from finepruning.report.progress import progress_for
    from finepruning.sensitivity import sensitivity_of_model, sensitivity_of_run

    progress = progress_for()
    try:
        if (path / "config.yaml").is_file() and data is None:
            return sensitivity_of_run(path, densities=densities, images=images, progress=progress)
        directory, _ = model_directory(path)
        if data is None:
            raise ArgumentError(f"{path} is a model without a run; name a folder of images as well")
        return sensitivity_of_model(directory, data, densities=densities, images=images, progress=progress)
    finally:
        progress.close()


def _shares(text: str) -> list[float]:
    try:
        return [float(item) for item in text.split(",") if item.strip()]
    except ValueError:
        raise ArgumentError(f"--densities: {text!r} must be numbers such as 0.5,0.2,0.1") from None
