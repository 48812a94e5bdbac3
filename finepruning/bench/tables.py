"""How a benchmark looks on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from finepruning.bench.memory import OURS
from finepruning.report.terminal import SEPARATOR, Row, print_table
from finepruning.report.text import density_text, percent_text, shape_text, size_text


def show_bench(result: dict[str, Any], console: Console) -> None:
    """One table of rows, ours first in each batch; the ratio is to the best dense time of that batch."""
    machine = result["machine"]
    place = machine["device"] if machine["device"] != "cpu" else machine["cpu"]
    console.print(
        f"{result['network']}, density {density_text(result['rows'][0]['density'])}, {result['dtype']}, "
        f"{machine['threads']} threads, {place}; every other runtime has the same network dense",
        soft_wrap=True,
    )
    rows: list[Row] = []
    cold = any("cold_ms" in row for row in result["rows"])  # measured on GPUs only
    previous = None
    for row in result["rows"]:
        if previous not in (None, row["batch"]):
            rows.append(SEPARATOR)
        rows.append(_bench_row(row, row["batch"] != previous, cold))
        previous = row["batch"]
    print_table(
        console,
        (
            *("batch", "runtime", "median ms", *(["cold ms"] if cold else []), "p20 - p80"),
            *("vs best dense", "weights", "peak memory", "error"),
        ),
        rows,
        left=("runtime",),
        optional=("error", "p20 - p80", "peak memory"),
    )
    for row in result["rows"]:
        reason = row.get("skipped", row.get("error"))
        if reason is not None:
            console.print(f"batch {row['batch']}, {row['peer']}: not timed, {reason}", soft_wrap=True)
    for row in result["rows"]:
        if row.get("floor_ms"):
            share = row["floor_ms"] / row["median_ms"]
            console.print(
                f"batch {row['batch']}: the machine's floor is {_ms(row['floor_ms'])} ms, "
                f"{percent_text(share, 0)} of the time taken",
                soft_wrap=True,
            )


def _bench_row(row: dict[str, Any], first: bool, cold: bool) -> tuple[str | Text, ...]:
    ours = row["peer"] == OURS
    timed = row["median_ms"] is not None
    return (
        str(row["batch"]) if first else "",
        Text(row["peer"], style="bold") if ours else row["peer"],
        _ms(row["median_ms"]),
        *([_ms(row.get("cold_ms"))] if cold else []),
        f"{_ms(row['p20_ms'])} - {_ms(row['p80_ms'])}" if timed else "-",
        _ratio(row["speedup"]) if "speedup" in row else "",
        size_text(row.get("weight_bytes")),
        size_text(row.get("peak_bytes")),
        f"{row['relative_error']:.0e}" if "relative_error" in row else "-",
    )


def _ratio(speedup: float) -> str:
    return f"{speedup:.2f}x faster" if speedup >= 1 else f"{1 / speedup:.2f}x slower"


def show_layers(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Per layer: kernel, time, share of the floor, and the dense time next to it."""
    for batch in dict.fromkeys(row["batch"] for row in rows):
        console.print(f"\nlayers, batch {batch}")
        print_table(
            console,
            ("layer", "kernel", "shape", "density", "ms", "of floor", "dense ms"),
            [_layer_row(row) for row in rows if row["batch"] == batch],
            left=("kernel",),
            optional=("shape", "density"),
        )


def _layer_row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        row["kernel"],
        shape_text(row["shape"]),
        density_text(row["density"]),
        _ms(row["ms"]),
        percent_text(row["floor_ms"] / row["ms"], 0) if row["floor_ms"] and row["ms"] else "-",
        _ms(row["dense_ms"]),
    )


def show_closing(result: dict[str, Any], report: dict[str, Any], console: Console) -> None:
    """Accuracy, density, bytes and latency of a run, dense against compressed."""
    sizes = report["bytes_dense"], report["bytes_sparse"]
    points = 100 * (report["accuracy"] - report["dense_accuracy"])
    rows: list[Row] = [
        (
            "test accuracy",
            percent_text(report["dense_accuracy"]),
            percent_text(report["accuracy"]),
            f"{points:+.1f} points",
        ),
        ("density", "1", density_text(report["density"]), ""),
        ("file", size_text(sizes[0]), size_text(sizes[1]), f"{sizes[0] / sizes[1]:.1f}x smaller"),
    ]
    for row in result["rows"]:
        if "speedup" in row:
            dense, ours = row["median_ms"] * row["speedup"], row["median_ms"]
            rows.append(
                (
                    f"latency, batch {row['batch']}",
                    f"{_ms(dense)} ms",
                    f"{_ms(ours)} ms",
                    _ratio(row["speedup"]),
                )
            )
    print_table(console, ("", "dense", "compressed", ""), rows)
    console.print()


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
