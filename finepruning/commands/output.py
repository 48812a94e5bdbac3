"""What a command prints for programs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from finepruning.errors import ArgumentError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to standard output.")]


def json_text(content: Any) -> str:
    """Standard JSON: numbers that are not finite become null."""
    return json.dumps(_finite(content), indent=2, allow_nan=False)


def print_json(content: Any) -> None:
    typer.echo(json_text(content))


def check_folder(option: str, path: Path | None) -> None:
    """Raise ArgumentError, before any work, where the file of an option has no folder to lie in."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ArgumentError(f"{option} {path}: the folder {path.absolute().parent} does not exist")


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content
