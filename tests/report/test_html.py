"""report.html: one file, complete, that asks nothing of the outside and escapes what users name."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finepruning.report import write
from finepruning.report.charts import linear_axis, log_axis

VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """Collects text and attributes, and checks that every element is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")


def page(run: Path, report: dict[str, Any]) -> Page:
    write(run, report)
    return Page((run / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def full(tmp_path: Path, report: dict[str, Any]) -> dict[str, Any]:
    """A report with everything that a section can show, and the files beside it in ``tmp_path``."""
    report["history"] = [
        {"phase": phase, "round": round_, "epoch": 1, "train_loss": 1.0 / (i + 1), "validation_loss": 0.5}
        | {"validation_accuracy": 0.9, "lr": 0.01, "density": 0.5, "seconds": 1.0}
        for i, (phase, round_) in enumerate([("dense", 0), ("round", 1), ("round", 2), ("final", 2)])
    ]
    report["confusion"] = {
        "matrix": [[18, 2, 0], [0, 15, 0], [1, 0, 14]],
        "pairs": [
            {
                "true": 0,
                "predicted": 1,
                "count": 2,
                "examples": [{"index": 7, "name": "field/07.jpg", "probability": 0.81}],
            }
        ],
    }
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(buffer, "JPEG")
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "7.jpg").write_bytes(buffer.getvalue())
    trials = [
        {"round": r, "index": i, "kind": kind, "objective": 1.0 / (i + r)}
        for r in (1, 2)
        for i, kind in enumerate(["global", "lamp", "search"])
    ]
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(t) + "\n" for t in trials))
    row = {"batch": 1, "weight_bytes": 100, "peak_bytes": None, "p20_ms": 1.0, "p80_ms": 2.0}
    bench = {
        "date": "2025-01-02T00:00:00",
        "dtype": "float32",
        "machine": {"device": "cpu", "cpu": "a processor", "threads": 2},
        "rows": [
            {**row, "peer": "finepruning", "median_ms": 1.5, "speedup": 0.5},
            {**row, "peer": "torch", "median_ms": 0.75},
            {**row, "peer": "openvino", "median_ms": None},
        ],
    }
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    return report


def test_everything_known_about_a_run_is_on_the_page(tmp_path: Path, full: dict[str, Any]) -> None:
    shown = page(tmp_path, full)
    for expected in (
        "alexnet on photos",
        "94.8 %",
        "-1.4 points",
        "6.2x",
        "classifier.1",
        "2.00x slower than the best dense",
        "not timed",
        "3 of 50 test images are taken for another class",
        "field taken for forest",
        "81 %",
        f'from_pretrained("{tmp_path / "model"}")',
        "target_density",
    ):
        assert expected in shown.text, expected
    tags = [tag for tag, _ in shown.tags]
    assert tags.count("svg") == 5  # accuracy, trials, two training curves, confusions
    assert tags.count("img") == 1


def test_the_page_asks_nothing_of_the_outside(tmp_path: Path, full: dict[str, Any]) -> None:
    shown = page(tmp_path, full)
    assert "script" not in [tag for tag, _ in shown.tags]
    for _, attributes in shown.tags:
        for name in ("src", "href"):
            assert re.match(r"data:|#", attributes.get(name) or "#")
    assert not re.search(r"@import|url\(", (tmp_path / "report.html").read_text(encoding="utf-8"))


def test_every_link_of_the_page_has_its_section(tmp_path: Path, full: dict[str, Any]) -> None:
    shown = page(tmp_path, full)
    anchors = {attributes["id"] for _, attributes in shown.tags if "id" in attributes}
    links = {a["href"] for tag, a in shown.tags if tag == "a"}
    assert links == {f"#{anchor}" for anchor in anchors}


def test_names_are_text_and_not_markup(tmp_path: Path, full: dict[str, Any]) -> None:
    full["classes"] = ["<b>field</b>", 'fo"rest', "water & ice"]
    full["name"] = full["data"] = "<script>alert(1)</script>"
    full["layers"][0]["name"] = "<i>0</i>"
    shown = page(tmp_path, full)
    assert "script" not in [tag for tag, _ in shown.tags]
    assert '<b>field</b> taken for fo"rest' in shown.text
    assert "<i>0</i>" in shown.text


def test_a_bare_report_leaves_out_what_it_does_not_know(tmp_path: Path, report: dict[str, Any]) -> None:
    report["rounds"], report["pareto"] = [], [report["pareto"][0]]
    (tmp_path / "trials.jsonl").write_text('{"round": 1, "ind')
    (tmp_path / "bench.json").write_text("not JSON")
    shown = page(tmp_path, report)
    assert "Not measured yet" in shown.text
    assert "taken for" not in shown.text


def test_losses_take_the_place_of_unknown_accuracies(tmp_path: Path, full: dict[str, Any]) -> None:
    for point in full["pareto"]:
        point["accuracy"] = None
    assert "validation loss" in page(tmp_path, full).text


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [], [0.0, 1.0], [1e-9, 1e-8], [-3.0, 1e6]])
def test_axes_hold_their_values_and_ticks(values: list[float]) -> None:
    for axis in (
        linear_axis(values, str),
        linear_axis(values, str, tight=True),
        log_axis([v for v in values if v > 0], str),
    ):
        assert axis.low < axis.high
        assert all(axis.low - 1e-9 <= tick <= axis.high * (1 + 1e-9) + 1e-9 for tick in axis.ticks)
        assert len(axis.ticks) <= 12
        for value in values:
            if value > 0 or not axis.log:
                assert -1e-9 <= axis.share(value) <= 1 + 1e-9


def test_many_rounds_share_one_caption(tmp_path: Path, full: dict[str, Any]) -> None:
    first, round_, _, last = full["history"]
    middle = [{**round_, "round": number} for number in range(1, 19)]
    full["history"] = [*[first] * 8, *middle, {**last, "round": 18}, *[{**last, "round": 18, "epoch": 2}] * 9]
    shown = page(tmp_path, full)
    assert "18 rounds" in shown.text
    assert "final" in shown.text
