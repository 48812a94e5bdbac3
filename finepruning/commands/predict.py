"""`finepruning predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finepruning.commands.options import Debug
from finepruning.commands.output import AsJson, print_json
from finepruning.errors import DataError


def command(
    model: Annotated[Path, typer.Argument(help="A model directory, or a run.")],
    images: Annotated[list[str], typer.Argument(help="Image files, folders or patterns such as 'in/*.jpg'.")],
    top: Annotated[int, typer.Option("--top", help="How many classes to name.")] = 3,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images in one call.")] = 16,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")] = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Name the class of images.

    [dim]finepruning predict runs/latest photo.jpg[/dim]
    [dim]finepruning predict runs/latest inbox/ --top 1 --json[/dim]
    """
    from finepruning.engine import SparseModel
    from finepruning.predict import find_images, predict
    from finepruning.report.places import model_directory

    files = find_images(images)
    directory, _ = model_directory(model)
    loaded = SparseModel.from_pretrained(directory, device=device)
    found = list(predict(loaded, files, top=top, batch_size=batch_size))
    if as_json:
        print_json([prediction.to_json() for prediction in found])
    else:
        from finepruning.report.predictions import show
        from finepruning.report.terminal import make_console

        show([prediction.to_json() for prediction in found], make_console())
    failed = [prediction for prediction in found if prediction.error is not None]
    if failed:
        first = f"{failed[0].image}: {failed[0].error}"
        raise DataError(f"{len(failed)} of {len(found)} files could not be used, such as {first}")
