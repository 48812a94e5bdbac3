"""Writes the tables of docs/results.md and its figures from the rows that benchmarks/method_grid.py measured.

    python benchmarks/method_results.py            # writes the tables, draws the figures
    python benchmarks/method_results.py --check    # fails where the tables are not those of the rows

A table stands between ``<!-- NAME -->`` and ``<!-- end -->``; the text around it is written by hand.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ROWS = Path(__file__).parent / "results" / "method_ucmerced.json"
PAGE = ROOT / "docs" / "results.md"
FIGURE = ROOT / "docs" / "method_ucmerced.svg"
TRIALS_FIGURE = ROOT / "docs" / "method_trials.svg"
LOWEST = 60  # percent, in the figure
SEARCHES = {"joint", "joint-at-once", "random", "paper"}
Row = dict[str, Any]


def grouped(rows: Iterable[Row]) -> dict[str, dict[float, list[Row]]]:
    """Rows of every method at every density, seeds in order."""
    table: dict[str, dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda row: row["seed"]):
        table[row["method"]][row["density"]].append(row)
    return table


def cell(rows: list[Row]) -> str:
    """Test accuracies in percent: of one seed, or their mean, range and number."""
    if not rows:
        return ""
    if any(row["accuracy"] is None for row in rows):
        return "no number"
    values = [100 * row["accuracy"] for row in rows]
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ({min(values):.1f}-{max(values):.1f}, {len(values)} seeds)"


def markdown(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def methods_table(rows: list[Row]) -> str:
    """Accuracy of every method at every density, the best mean at the lowest measured density first."""
    table = grouped(row for row in rows if "+" not in row["method"] and row["method"] != "dense")
    densities = sorted(
        {row["density"] for methods in table.values() for found in methods.values() for row in found}
    )
    densities.reverse()

    def rank(name: str) -> tuple[float, ...]:
        found = table[name]
        return tuple(
            -statistics.mean(row["accuracy"] or 0.0 for row in found[d]) if found.get(d) else 0.0
            for d in reversed(densities)
        )

    lines = []
    for name in sorted(table, key=rank):
        measured = [row for found in table[name].values() for row in found if row["accuracy"] is not None]
        shares = [row["search_seconds"] / row["seconds"] for row in measured]
        share = f"{100 * statistics.median(shares):.0f} %" if shares else ""
        lines.append([name, *(cell(table[name].get(d, [])) for d in densities), share])
    return markdown(["method", *(f"density {d:g}" for d in densities), "of its time in search"], lines)


def ablations_table(rows: list[Row]) -> str:
    """Test accuracy with one option changed, next to the joint method with the same density and seed."""
    base = {(row["density"], row["seed"]): row for row in rows if row["method"] == "joint"}
    lines = []
    for row in rows:
        name, _, option = row["method"].partition("+")
        same = base.get((row["density"], row["seed"]))
        if name != "joint" or not option or same is None:
            continue
        before = cell([same])
        if row["accuracy"] is None or same["accuracy"] is None:
            lines.append([option, f"{row['density']:g}", cell([row]), before, "", ""])
            continue
        points = 100 * (row["accuracy"] - same["accuracy"])
        losses = f"{row['validation_loss']:.3f} / {same['validation_loss']:.3f}"
        lines.append(
            [
                option,
                f"{row['density']:g}",
                cell([row]),
                before,
                f"{points:+.1f}",
                losses,
            ]
        )
    lines.sort(key=lambda line: (-float(line[1]), -float(line[4] or "-inf")))
    head = [
        "option",
        "density",
        "accuracy with it",
        "joint without",
        "points",
        "validation loss with / without",
    ]
    return markdown(head, lines)


def searches_table(rows: list[Row]) -> str:
    """What the searches gained on their own objective, and what was left of it at the end."""
    lines = []
    finished = (row for row in rows if row["accuracy"] is not None)
    for row in sorted(finished, key=lambda row: (-row["density"], row["seed"], row["method"])):
        if row["method"] not in SEARCHES and row["method"] != "gradual-global":
            continue
        gains = [1 - best / first for first, best in row["trials"] if first]
        searched = row["method"] in SEARCHES
        lines.append(
            [
                row["method"] if searched else "gradual-global (theta = 0)",
                f"{row['density']:g}",
                str(row["seed"]),
                f"{100 * statistics.mean(gains):.1f} %" if searched and gains else "",
                f"{row['validation_loss']:.3f}",
                f"{100 * row['accuracy']:.1f}",
            ]
        )
    head = ["search", "density", "seed", "loss of a trial, against theta = 0", "final validation loss"]
    return markdown([*head, "test accuracy"], lines)


TABLES: dict[str, Callable[[list[Row]], str]] = {
    "methods": methods_table,
    "ablations": ablations_table,
    "searches": searches_table,
}


def with_tables(page: str, rows: list[Row]) -> str:
    for name, table in TABLES.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        if not pattern.search(page):
            raise SystemExit(f"{PAGE} has no <!-- {name} --> ... <!-- end -->")
        text = table(rows)
        page = pattern.sub(lambda match, text=text: match[1] + text + match[2], page)  # type: ignore[misc]
    return page


def style_of(name: str) -> dict[str, Any]:
    """Post-hoc recipes: colors tell allocations, dashes schedules; searches are black and strong."""
    if name in SEARCHES:
        dashes = {"joint": "-", "joint-at-once": "--", "random": ":"}.get(name, "-.")
        return {"color": "black", "linestyle": dashes, "linewidth": 2.0, "marker": "o", "markersize": 4}
    schedule, _, allocation = name.rpartition("-")
    colors = {"global": "C0", "lamp": "C1", "erk": "C2", "uniform": "C3", "fisher": "C4"}
    dashes = {"gradual": "-", "iterative": "--", "one-shot": ":"}.get(schedule, "-")
    return {"color": colors.get(allocation, "C7"), "linestyle": dashes, "linewidth": 1.2, "marker": "."}


def draw(rows: list[Row]) -> None:
    """Test accuracy against density, each method a line; what falls below `LOWEST` leaves the picture."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    dense = [100 * row["dense_accuracy"] for row in rows if row["method"] != "dense"]
    axes.axhline(statistics.mean(dense), color="0.6", linestyle=":", label="dense, before pruning")
    for name, densities in sorted(grouped(rows).items(), key=lambda item: (item[0] not in SEARCHES, item[0])):
        if "+" in name or name == "dense":
            continue
        points = sorted(
            (d, 100 * statistics.mean(row["accuracy"] for row in found)) for d, found in densities.items()
        )
        axes.plot(*zip(*points, strict=True), label=name, **style_of(name))
    axes.set_xscale("log")
    ticks = sorted({row["density"] for row in rows if row["density"] < 1}) or [0.1]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set_ylim(LOWEST, 97)
    axes.set_xlabel("density")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("UC Merced, SqueezeNet 1.1, 128 px, equal epochs", fontsize=10)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(FIGURE, metadata={"Date": None})


def best_so_far(row: Row) -> list[float]:
    """After each trial, the lowest objective against that of theta = 0, in percent; mean of the rounds."""
    rounds = [list(itertools.accumulate(values, min)) for values in row["objectives"]]
    shares = [
        [100 * (value / values[0] - 1) for value in best]
        for values, best in zip(row["objectives"], rounds, strict=True)
    ]
    return [statistics.mean(values) for values in zip(*shares, strict=True)]


def draw_trials(rows: list[Row]) -> None:
    """The best objective so far against the number of trials: Bayesian optimization and random search."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    table = grouped(row for row in rows if row["method"] in ("joint", "random") and row.get("objectives"))
    densities = sorted({density for found in table.values() for density in found}, reverse=True)
    if not densities:
        return
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(1, len(densities), sharey=True, squeeze=False)[0]
    for axes, density in zip(panels, densities, strict=True):
        for name, color in (("joint", "C0"), ("random", "C1")):
            for row in table[name].get(density, []):
                curve = best_so_far(row)
                style = {0: "-", 1: "--", 2: ":"}.get(row["seed"], "-.")
                label = f"{'Bayesian' if name == 'joint' else name}, seed {row['seed']}"
                axes.plot(range(1, len(curve) + 1), curve, style, color=color, label=label)
        axes.set_title(f"density {density:g}", fontsize=10)
        axes.set_xlabel("trials")
    panels[0].set_ylabel("best loss so far, % of theta = 0")
    panels[0].legend(fontsize=7)
    figure.savefig(TRIALS_FIGURE, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail where the page is out of date"
    )
    options = parser.parse_args()
    rows: list[Row] = json.loads(ROWS.read_text())["rows"]
    page = PAGE.read_text()
    updated = with_tables(page, rows)
    if options.check:
        if page != updated:
            sys.exit(f"{PAGE} is out of date; run python {sys.argv[0]}")
        return
    PAGE.write_text(updated)
    finished = [row for row in rows if row["accuracy"] is not None]
    draw(finished)
    draw_trials(finished)


if __name__ == "__main__":
    main()
