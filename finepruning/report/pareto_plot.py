"""pareto.png: accuracy (or loss) against density, from the dense network to the final one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finepruning.files import replace_file
from finepruning.report.markdown import best_by_density

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _GREY = "#1f2933", "#9aa5b1"
_STYLES: dict[str, dict[str, Any]] = {
    "trial": {
        "marker": "o",
        "s": 16,
        "color": "#8fb8de",
        "alpha": 0.55,
        "linewidths": 0,
        "label": "trial, before fine-tuning",
    },
    "round": {
        "marker": "o",
        "s": 52,
        "color": "#2b6cb0",
        "edgecolors": "white",
        "label": "round, after fine-tuning",
    },
    "dense": {"marker": "s", "s": 64, "color": _INK, "edgecolors": "white", "label": "dense"},
    "final": {"marker": "*", "s": 240, "color": "#dd6b20", "edgecolors": "white", "label": "final"},
}


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw ``report["pareto"]`` into the PNG file ``path``.

    Accuracy is drawn when any point has one (points without it are left out), else the validation loss.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = report["pareto"]
    measure = "accuracy" if any(p.get("accuracy") is not None for p in points) else "loss"
    figure = Figure(figsize=(7.2, 4.5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _style(axes)
    shown = [p for p in points if p.get(measure) is not None]
    for kind, style in _STYLES.items():
        chosen = [p for p in shown if p["kind"] == kind]
        if chosen:
            axes.scatter(
                [p["density"] for p in chosen],
                [p[measure] for p in chosen],
                **style,
                zorder=4 if kind == "final" else 3,
            )
    path_points = [p for p in shown if p["kind"] != "trial"]
    front = best_by_density(path_points, measure)
    axes.plot(
        [p["density"] for p in front], [p[measure] for p in front], color="#2b6cb0", linewidth=1.4, zorder=2
    )
    _scale(axes, shown, measure)
    _annotate(axes, report, path_points, measure)
    axes.legend(frameon=False, fontsize=9, loc="lower right" if measure == "accuracy" else "upper right")
    axes.set_title(_title(report), loc="left", fontsize=11, color=_INK, fontweight="bold", pad=12)
    picture = io.BytesIO()
    figure.savefig(picture)
    replace_file(path, picture.getvalue())


def _style(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GREY)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(True, which="major", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)


def _scale(axes: Axes, points: Sequence[dict[str, Any]], measure: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    lowest = min((p["density"] for p in points), default=0.1)
    axes.set_xscale("log")
    axes.set_xlim(max(lowest, 1e-4) * 0.75, 1.3)
    ticks = [t for t in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if t >= lowest * 0.7]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.set_xlabel("weights kept", color=_INK)
    if measure == "accuracy":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.set_ylabel("accuracy on validation images", color=_INK)
    else:
        axes.set_yscale("log")
        axes.set_ylabel("validation loss", color=_INK)


def _annotate(axes: Axes, report: dict[str, Any], points: Sequence[dict[str, Any]], measure: str) -> None:
    for point in points:
        if point["kind"] not in ("dense", "final"):
            continue
        value = point[measure]
        text = f"{100 * value:.1f} %" if measure == "accuracy" else f"{value:.3g}"
        axes.annotate(
            text,
            (point["density"], value),
            xytext=(0, 11),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=_INK,
        )


def _title(report: dict[str, Any]) -> str:
    model = report["model"] or "built-in network"
    data = Path(str(report["data"])).name if report["data"] else "built-in textures"
    return f"{model} on {data}"
