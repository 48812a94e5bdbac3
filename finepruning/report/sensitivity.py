"""The sensitivity of layers, as a table and as one plot."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from finepruning.files import replace_file
from finepruning.report.terminal import SEPARATOR, Row, print_table
from finepruning.report.text import percent_text

POINTS = 0.01  # of accuracy that "holds to" allows to lose


def holds_to(content: dict[str, Any], layer: dict[str, Any]) -> float | None:
    """The lowest density of the grid down to which the layer loses at most a point of accuracy."""
    lowest = None
    for density, accuracy in zip(content["densities"], layer["accuracy"], strict=True):
        if accuracy < content["accuracy"] - POINTS:
            break
        lowest = density
    return lowest


def show(content: dict[str, Any], console: Console) -> None:
    """Accuracy with each layer pruned alone."""
    densities = content["densities"]
    rows: list[Row] = []
    for layer in content["layers"]:
        holds = holds_to(content, layer)
        rows.append(
            (
                layer["name"],
                f"{layer['size']:,}",
                *(percent_text(accuracy) for accuracy in layer["accuracy"]),
                "none" if holds is None else f"{holds:g}",
            )
        )
    rows += [SEPARATOR, ("nothing pruned", "", percent_text(content["accuracy"]), *[""] * len(densities))]
    print_table(
        console,
        ("layer", "weights", *(f"at {d:g}" for d in densities), "holds to"),
        rows,
        optional=("weights",),
    )
    console.print(
        f"Accuracy on {content['images']} validation images with one layer pruned to a density, the others "
        "whole. Holds to: the lowest density that loses at most one point.",
        soft_wrap=True,
    )


def plot(content: dict[str, Any], path: Path) -> None:
    """Draw layers against densities, coloured by the accuracy that is left, into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    layers, densities = content["layers"], content["densities"]
    values = [[accuracy - content["accuracy"] for accuracy in layer["accuracy"]] for layer in layers]
    figure = Figure(
        figsize=(2.6 + 0.85 * len(densities), 1.3 + 0.26 * len(layers)), dpi=160, layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = LinearSegmentedColormap.from_list("loss", ["#d9621b", "#f3c9a8", "#f6f8fa"])
    lowest = min(-0.05, min(min(row) for row in values))
    axes.imshow(values, cmap=colours, vmin=lowest, vmax=0.0, aspect="auto")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            dark = value < 0.75 * lowest
            text = f"{100 * content['layers'][row]['accuracy'][column]:.1f}"
            axes.text(
                column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "#1f2933"
            )
    axes.set_xticks(range(len(densities)), [f"{100 * d:g} %" for d in densities], fontsize=9)
    axes.set_yticks(range(len(layers)), [layer["name"] for layer in layers], fontsize=8)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel("weights kept in this layer alone", fontsize=9)
    axes.set_title(
        f"Accuracy in percent; {100 * content['accuracy']:.1f} with nothing pruned", loc="left", fontsize=10
    )
    picture = io.BytesIO()
    figure.savefig(picture)
    replace_file(path, picture.getvalue())
