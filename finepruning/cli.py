"""The `finepruning` command: its subcommands, and how errors and interrupts end it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from finepruning import __version__
from finepruning.commands import bench, compare, compress, export, inspect, predict, report, sensitivity
from finepruning.commands.options import Debug
from finepruning.errors import DeviceError, FinepruningError
from finepruning.memory import out_of_memory

USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it

app = typer.Typer(
    name="finepruning",
    help="Fine-tune and prune CNNs together, then run the sparse result fast on CPU and CUDA.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("compress")(compress.command)
app.command("predict")(predict.command)
app.command("bench")(bench.command)
app.command("inspect")(inspect.command)
app.command("compare")(compare.command)
app.command("report")(report.command)
app.command("sensitivity")(sensitivity.command)
app.command("export")(export.command)


def _show_version(show: bool) -> None:
    if show:
        typer.echo(f"finepruning {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
    debug: Debug = False,
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    Every error the user can cause is one line on stderr and code 2; ``--debug`` anywhere on the line lets
    the traceback through. Anything else is a defect of ours and keeps its traceback.
    """
    if "--debug" not in arguments:
        for category in (FutureWarning, DeprecationWarning):  # what our dependencies say to one another
            warnings.simplefilter("ignore", category)
    try:
        code = typer.main.get_command(app).main(
            list(arguments), prog_name="finepruning", standalone_mode=False
        )
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "--debug" in arguments or not (_is_users(error) or out_of_memory(error)):
            raise
        if isinstance(error, MemoryError) and not str(error):
            error = DeviceError("out of memory; close other programs, or give smaller images or batches")
        typer.echo(f"error: {_one_line(error)}", err=True)
        return USAGE_ERROR
    return code if isinstance(code, int) else 0


def _is_users(error: Exception) -> bool:
    # Usage errors of Typer have no public base class that all its versions share; all can format themselves.
    return isinstance(error, FinepruningError) or hasattr(error, "format_message")


def _one_line(error: Exception) -> str:
    text = str(error.format_message() if hasattr(error, "format_message") else error)
    if text.startswith("No such command") and "(" not in text:
        text += f" Commands: {', '.join(command.name or '' for command in app.registered_commands)}."
    return " ".join(text.split())


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))
