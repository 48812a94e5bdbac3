"""The report's figures of the result: speed against other runtimes, and what the model confuses."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from finepruning.report.charts import heatmap
from finepruning.report.markup import Html, bar, figure, paragraph, table
from finepruning.report.text import percent_text, size_text

MATRIX_CLASSES = 60  # a larger matrix cannot be read


def speed(bench: dict[str, Any] | None, run_dir: Path) -> str:
    """The rows of the last `finepruning bench` of this run, or how to get them."""
    if bench is None:
        return paragraph(
            f"Not measured yet. <code>finepruning bench {escape(str(run_dir))}</code> compares it with dense "
            "runtimes on this machine and adds the result here.",
            "soft",
        )
    rows, kinds = [], []
    previous = None
    for row in bench["rows"]:
        longest = max(r["median_ms"] or 0.0 for r in bench["rows"] if r["batch"] == row["batch"])
        ours = "speedup" in row or row["peer"] == "finepruning"
        timed = row["median_ms"] is not None
        rows.append(
            (
                row["batch"] if row["batch"] != previous else "",
                row["peer"],
                f"{row['median_ms']:.3g} ms" if timed else "not timed",
                Html(bar(row["median_ms"] / longest, "blue" if ours else "")) if timed and longest else "",
                _ratio(row.get("speedup")),
                size_text(row["weight_bytes"]),
                size_text(row["peak_bytes"]),
            )
        )
        kinds.append(" ".join(["ours"] * ours + ["gap"] * (previous not in (None, row["batch"]))))
        previous = row["batch"]
    head = ("batch", "runtime", "median", "", "against best dense", "weights", "peak memory")
    machine = bench["machine"]
    place = machine["device"] if machine["device"] != "cpu" else machine["cpu"]
    threads = machine["threads"]
    note = (
        f"{escape(bench['dtype'])}, {threads} thread{'s' * (threads != 1)}, {escape(str(place))}, "
        f"{escape(bench['date'][:10])}. All runtimes took turns in one process, with the same input, after "
        "their outputs were compared; the others run the same network with its zeros stored."
    )
    return table(head, rows, left=(0, 1), tracks=(3,), kinds=kinds) + paragraph(note, "soft")


def _ratio(speedup: float | None) -> str:
    if speedup is None:
        return ""
    return f"{speedup:.2f}x faster" if speedup >= 1 else f"{1 / speedup:.2f}x slower"


def confusions(report: dict[str, Any], pictures: Mapping[int, bytes]) -> str:
    """The confusion matrix of the test split and the pairs that are confused most, with examples."""
    found = report.get("confusion")
    if not found:
        return ""
    names, matrix = report["classes"], found["matrix"]
    wrong = sum(sum(row) for row in matrix) - sum(row[i] for i, row in enumerate(matrix))
    total = sum(sum(row) for row in matrix)
    text = (
        f"{wrong} of {total} test images are taken for another class."
        if wrong
        else f"All {total} test images are told apart."
    )
    parts = [paragraph(text + _weakest(names, matrix))]
    if len(names) <= MATRIX_CLASSES:
        caption = "Rows: the true class. Columns: the answer. Test images of the pruned model."
        parts.append(figure(heatmap(matrix, names), caption))
    if found["pairs"]:
        parts.append("<h3>Confused most</h3>")
        parts.append(paragraph("Below each image: how sure the model was of its wrong answer.", "soft"))
        cards = "".join(_card(pair, names, matrix, pictures) for pair in found["pairs"])
        parts.append(f'<div class="confused">{cards}</div>')
    return "".join(parts)


def _weakest(names: list[str], matrix: list[list[int]]) -> str:
    shares = [(row[i] / sum(row), names[i]) for i, row in enumerate(matrix) if sum(row)]
    below = sorted(share for share in shares if share[0] < 1)[:3]
    if not below:
        return ""
    return (
        " Hardest: " + ", ".join(f"{escape(name)} ({percent_text(share, 0)})" for share, name in below) + "."
    )


def _card(
    pair: dict[str, Any], names: list[str], matrix: list[list[int]], pictures: Mapping[int, bytes]
) -> str:
    true, taken = names[pair["true"]], names[pair["predicted"]]
    shots = "".join(
        _shot(example, pictures[example["index"]])
        for example in pair["examples"]
        if example["index"] in pictures
    )
    return (
        f"<div><p>{escape(true)} <span class=soft>taken for</span> {escape(taken)}<br><small>"
        f"{pair['count']} of {sum(matrix[pair['true']])} images</small></p>"
        f"<div class=shots>{shots}</div></div>"
    )


def _shot(example: dict[str, Any], picture: bytes) -> str:
    data = base64.b64encode(picture).decode()
    name = example.get("name") or f"test image {example['index']}"
    sure = percent_text(example["probability"], 0)
    return (
        f'<figure><img alt="{escape(name)}" src="data:image/jpeg;base64,{data}">'
        f'<figcaption title="{escape(name)}">{sure}</figcaption></figure>'
    )
