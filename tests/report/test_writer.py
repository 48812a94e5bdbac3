from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finepruning.report import write
from finepruning.report.markdown import pareto_front


def test_report_says_what_was_asked_and_what_came_out(tmp_path: Path, report: dict[str, Any]) -> None:
    write(tmp_path, report)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for expected in (
        "96.2 %",
        "94.8 %",
        "-1.4 points",
        "640 kB",
        "4 MB",
        "`classifier.1`",
        "8x3x3x3",
        "2 min 42 s",
    ):
        assert expected in text
    assert f'from_pretrained("{tmp_path / "model"}")' in text
    assert "| target_density | 0.1" in text


def test_every_table_has_as_many_cells_in_each_row(tmp_path: Path, report: dict[str, Any]) -> None:
    report["config"]["data"] = "photos | more\nphotos"
    write(tmp_path, report)
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    previous = 0
    for line in lines:
        cells = line.replace("\\|", "").count("|")
        assert cells == 0 or previous == 0 or cells == previous
        previous = cells


@pytest.mark.parametrize("accuracy", [True, False])
def test_the_plot_is_a_picture_with_something_on_it(
    tmp_path: Path, report: dict[str, Any], accuracy: bool
) -> None:
    if not accuracy:
        for point in report["pareto"]:
            point["accuracy"] = None
    write(tmp_path, report)
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.width >= 800
        assert picture.height >= 500
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50


def test_a_run_without_rounds_or_trials_still_reports(tmp_path: Path, report: dict[str, Any]) -> None:
    report["rounds"], report["pareto"] = [], [report["pareto"][0]]
    write(tmp_path, report)
    assert (tmp_path / "pareto.png").stat().st_size > 1000


def test_pareto_front_keeps_only_points_that_nothing_beats() -> None:
    points = [
        {"density": 1.0, "loss": 0.1, "accuracy": 0.9, "kind": "dense"},
        {"density": 0.5, "loss": 0.3, "accuracy": 0.8, "kind": "trial"},
        {"density": 0.5, "loss": 0.2, "accuracy": 0.85, "kind": "trial"},
        {"density": 0.1, "loss": 0.3, "accuracy": 0.82, "kind": "round"},
        {"density": 0.7, "loss": 0.4, "accuracy": 0.84, "kind": "trial"},
    ]
    assert [p["density"] for p in pareto_front(points)] == [1.0, 0.5, 0.1]
    for point in points:
        point["accuracy"] = None
    assert [(p["density"], p["loss"]) for p in pareto_front(points)] == [(1.0, 0.1), (0.5, 0.2), (0.1, 0.3)]
