"""`finepruning compress`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from finepruning.commands.config_file import read_config
from finepruning.commands.options import Debug, with_config_options
from finepruning.config import CHANGEABLE, CompressConfig
from finepruning.errors import ArgumentError

INTERRUPTED = 130


@with_config_options
def command(
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Continue the run in this directory.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="YAML file of these options; the command line wins.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON at the end.")] = False,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Fine-tune and prune a network to a folder of images.

    [dim]finepruning compress[/dim]  a demonstration on built-in data, in minutes
    [dim]finepruning compress photos/ --model resnet50 --target-density 0.05[/dim]
    [dim]finepruning compress --resume runs/latest[/dim]
    """
    asked = {name: value for name, value in given.items() if value is not None}
    own = [name for name in asked if name not in CHANGEABLE]
    if resume is not None and (own or config is not None):
        named = ", ".join(["--config"] * (config is not None) + ["--" + n.replace("_", "-") for n in own])
        raise ArgumentError(f"--resume continues a run with its own options; leave out {named}")
    values = {**(read_config(config) if config is not None else {}), **asked}
    settings = CompressConfig(**values)
    if dry_run:
        from finepruning.compress import dry_run as describe

        content = describe(settings)
    else:
        content = _compress(settings, resume, asked)
    if as_json:
        typer.echo(json.dumps(content, indent=2))
        return
    from finepruning.report.summary import show_dry_run, show_summary
    from finepruning.report.terminal import make_console

    show = show_dry_run if dry_run else show_summary
    show(content, make_console())


def _compress(settings: CompressConfig, resume: Path | None, asked: dict[str, Any]) -> dict[str, Any]:
    from finepruning.report.progress import progress_for

    progress = progress_for()
    try:
        from finepruning.compress import Interrupted, compress

        try:
            return compress(settings, progress=progress, resume=resume, changes=asked if resume else None)
        except Interrupted as stop:
            said = f"interrupted; to continue: finepruning compress --resume {stop.run_dir}"
    except KeyboardInterrupt:
        said = "interrupted"
    finally:
        progress.close()
    typer.echo(said, err=True)
    raise typer.Exit(INTERRUPTED)
