"""How a benchmark looks on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from finepruning.bench.memory import OURS
from finepruning.report.summary import plain_table
from finepruning.report.text import density_text, percent_text, shape_text, size_text


def show_bench(result: dict[str, Any], console: Console) -> None:
    """One table of rows, ours first in each batch; the ratio is to the best dense time of that batch."""
    machine = result["machine"]
    place = machine["device"] if machine["device"] != "cpu" else machine["cpu"]
    console.print(
        f"{result['network']}, density {density_text(result['rows'][0]['density'])}, {result['dtype']}, "
        f"{machine['threads']} threads, {place}",
        soft_wrap=True,
    )
    table = plain_table(
        "batch", "runtime", "median ms", "p20 - p80", "vs best dense", "weights", "peak memory", "error"
    )
    table.columns[1].justify = "left"
    previous = None
    for row in result["rows"]:
        if previous not in (None, row["batch"]):
            table.add_section()
        name = row["peer"] + ("" if row["peer"] == OURS else " (dense)")
        table.add_row(
            str(row["batch"]) if row["batch"] != previous else "",
            Text(name, style="bold" if row["peer"] == OURS else ""),
            _ms(row["median_ms"]),
            "-" if row["median_ms"] is None else f"{_ms(row['p20_ms'])} - {_ms(row['p80_ms'])}",
            Text(
                f"{row['speedup']:.2f}x faster" if row["speedup"] >= 1 else f"{row['speedup']:.2f}x (slower)"
            )
            if "speedup" in row
            else "",
            size_text(row["weight_bytes"]),
            size_text(row["peak_bytes"]),
            f"{row['relative_error']:.0e}",
        )
        previous = row["batch"]
    console.print(table)
    for row in result["rows"]:
        if "skipped" in row:
            console.print(f"batch {row['batch']}, {row['peer']}: not timed, {row['skipped']}", soft_wrap=True)
        if row.get("floor_ms"):
            share = row["floor_ms"] / row["median_ms"]
            console.print(
                f"batch {row['batch']}: {percent_text(share, 0)} of what this machine's limits allow "
                f"({_ms(row['floor_ms'])} ms)",
                soft_wrap=True,
            )


def show_layers(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Per layer: kernel, time, share of the floor, and the dense time next to it."""
    for batch in dict.fromkeys(row["batch"] for row in rows):
        console.print(f"\nlayers, batch {batch}")
        table = plain_table("layer", "kernel", "shape", "density", "ms", "of floor", "dense ms")
        for row in rows:
            if row["batch"] == batch:
                table.add_row(
                    row["name"],
                    row["kernel"],
                    shape_text(row["shape"]),
                    density_text(row["density"]),
                    _ms(row["ms"]),
                    percent_text(row["floor_ms"] / row["ms"], 0) if row["floor_ms"] and row["ms"] else "-",
                    _ms(row["dense_ms"]),
                )
        console.print(table)


def show_closing(result: dict[str, Any], report: dict[str, Any], console: Console) -> None:
    """Accuracy, density, bytes and latency of a run, dense against compressed."""
    table = plain_table("", "dense", "compressed", "")
    table.add_row("test accuracy", percent_text(report["dense_accuracy"]), percent_text(report["accuracy"]))
    table.add_row("density", "1.0000", density_text(report["density"]))
    sizes = report["bytes_dense"], report["bytes_sparse"]
    table.add_row("file", size_text(sizes[0]), size_text(sizes[1]), f"{sizes[0] / sizes[1]:.1f}x smaller")
    for row in result["rows"]:
        if "speedup" in row:
            dense = row["median_ms"] * row["speedup"]
            table.add_row(
                f"latency, batch {row['batch']}",
                f"{_ms(dense)} ms",
                f"{_ms(row['median_ms'])} ms",
                f"{row['speedup']:.2f}x {'faster' if row['speedup'] >= 1 else '(slower)'}",
            )
    console.print(table)


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
