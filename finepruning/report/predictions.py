"""How predictions look on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from finepruning.report.terminal import print_table
from finepruning.report.text import percent_text


def show(predictions: Sequence[dict[str, Any]], console: Console) -> None:
    """One row an image, as `Prediction.to_json` gives them."""
    rows = []
    for entry in predictions:
        if "error" in entry:
            rows.append((entry["image"], f"({entry['error']})", "-", ""))
            continue
        others = ", ".join(f"{o['class']} {percent_text(o['probability'])}" for o in entry["top"][1:])
        rows.append((entry["image"], entry["class"], percent_text(entry["probability"]), others))
    also = any(row[3] for row in rows)
    columns = ("image", "class", "probability", "then") if also else ("image", "class", "probability")
    print_table(
        console,
        columns,
        [row[: len(columns)] for row in rows],
        left=columns[1:2] + columns[3:],
        optional=columns[3:],
    )
