"""Writes the tables of docs/results.md and its figure from the rows that benchmarks/method_grid.py measured.

    python benchmarks/method_results.py            # writes the tables, draws the figure
    python benchmarks/method_results.py --check    # fails where the tables are not those of the rows

A table stands between ``<!-- NAME -->`` and ``<!-- end -->``; the text around it is written by hand.
"""

from __future__ import annotations

import argparse
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
            -statistics.mean(row["accuracy"] for row in found[d]) if found.get(d) else 0.0
            for d in reversed(densities)
        )

    lines = []
    for name in sorted(table, key=rank):
        measured = [row for found in table[name].values() for row in found]
        seconds = statistics.median(row["search_seconds"] / row["seconds"] for row in measured)
        lines.append([name, *(cell(table[name].get(d, [])) for d in densities), f"{100 * seconds:.0f} %"])
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
        points = 100 * (row["accuracy"] - same["accuracy"])
        figures = [100 * row["accuracy"], 100 * same["accuracy"]]
        losses = f"{row['validation_loss']:.3f} / {same['validation_loss']:.3f}"
        lines.append(
            [
                option,
                f"{row['density']:g}",
                f"{figures[0]:.1f}",
                f"{figures[1]:.1f}",
                f"{points:+.1f}",
                losses,
            ]
        )
    lines.sort(key=lambda line: (-float(line[1]), -float(line[4])))
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
    for row in sorted(rows, key=lambda row: (-row["density"], row["seed"], row["method"])):
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


def draw(rows: list[Row]) -> None:
    """Test accuracy against density: each method a line, the joint ones strong."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    dense = [100 * row["dense_accuracy"] for row in rows]
    axes.axhline(statistics.mean(dense), color="0.6", linestyle=":", label="dense")
    for name, densities in sorted(grouped(rows).items()):
        if "+" in name or name == "dense":
            continue
        points = sorted(
            (d, 100 * statistics.mean(row["accuracy"] for row in found)) for d, found in densities.items()
        )
        strong = name in SEARCHES
        axes.plot(
            *zip(*points, strict=True),
            marker="o" if strong else ".",
            linewidth=2 if strong else 1,
            label=name,
        )
    axes.set_xscale("log")
    ticks = sorted({row["density"] for row in rows if row["density"] < 1}) or [0.1]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("density")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("UC Merced, SqueezeNet 1.1, 128 px, equal epochs", fontsize=10)
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(FIGURE, metadata={"Date": None})


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
    draw(rows)


if __name__ == "__main__":
    main()
