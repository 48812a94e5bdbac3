"""Finding a model, a run and its report from what the user named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finepruning.errors import ArgumentError


def model_directory(path: Path) -> tuple[Path, Path | None]:
    """(model directory, run directory or None) of what the user named.

    Raises:
        ArgumentError: ``path`` is neither.
    """
    if (path / "config.json").is_file():
        run = path.parent
        return path, run if (run / "report.json").is_file() else None
    if (path / "model" / "config.json").is_file():
        return path / "model", path
    if not path.exists():
        raise ArgumentError(f"{path} does not exist; name a model directory or a run such as runs/latest")
    if (path / "config.yaml").is_file():
        raise ArgumentError(f"{path} is a run without a model yet; finish it with compress --resume {path}")
    raise ArgumentError(f"{path} is neither a model directory (config.json) nor a run (model/config.json)")


def read_report(run: Path | None) -> dict[str, Any] | None:
    """A run's report.json, or None where there is none to read."""
    if run is None:
        return None
    try:
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) else None
