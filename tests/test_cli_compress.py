"""What `finepruning compress` does with its options; the work itself is replaced by a fake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import finepruning.compress as compress_module
from finepruning.cli import run
from finepruning.config import CompressConfig

Captured = pytest.CaptureFixture[str]

REPORT = {
    "dense_accuracy": 0.96,
    "accuracy": 0.95,
    "density": 0.1,
    "bytes_dense": 4_000_000,
    "bytes_sparse": 640_000,
    "seconds": {"total": 61.0},
    "config": {"out": "/somewhere/runs/net"},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[CompressConfig, Path | None]]:
    """Every call of `compress`, which does nothing but report."""
    calls: list[tuple[CompressConfig, Path | None]] = []

    def fake(
        config: CompressConfig, *, progress: Any = None, resume: Path | None = None, changes: Any = None
    ) -> dict[str, Any]:
        calls.append((config, resume))
        progress.plan([("dense", 2)])
        progress.start("dense")
        progress.advance(2, loss=0.5)
        return REPORT

    monkeypatch.setattr(compress_module, "compress", fake)
    return calls


def test_options_become_the_configuration(asked: list[Any], capsys: Captured) -> None:
    line = "compress photos --model alexnet --target-density 0.05 --rounds 2 --no-splicing --lr 1e-3 --seed 7"
    assert run(line.split()) == 0
    expected = CompressConfig(
        data="photos", model="alexnet", target_density=0.05, rounds=2, splicing=False, lr=1e-3, seed=7
    )
    assert asked == [(expected, None)]
    captured = capsys.readouterr()
    assert "dense (2 steps)" in captured.err
    for text in (
        "96.0 %",
        "95.0 %",
        "0.1000",
        "640 kB",
        "/somewhere/runs/net/report.html",
        "pareto.png",
        "1 min 1 s",
    ):
        assert text in captured.out


def test_no_arguments_are_the_defaults(asked: list[Any]) -> None:
    assert run(["compress"]) == 0
    assert asked == [(CompressConfig(), None)]


def test_json_is_all_that_goes_to_standard_output(asked: list[Any], capsys: Captured) -> None:
    assert run(["compress", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == REPORT


def test_the_command_line_wins_over_the_file(asked: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("target-density: 0.2\nlr: 1e-3\nrounds: 3\nmodel: null\nwarmup: 2\n")
    assert run(["compress", "--config", str(file), "--rounds", "5"]) == 0
    assert asked[0][0] == CompressConfig(target_density=0.2, lr=1e-3, rounds=5, warmup=2.0)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("target_densty: 0.1", "target_density"),
        ("rounds: many", "rounds"),
        ("splicing: 3", "splicing"),
        ("rounds: null", "rounds"),
        ("- a\n- b", "name: value"),
        ("a: [", "YAML"),
        ("target_density: 3", "target_density"),
    ],
)
def test_a_bad_file_is_one_line(
    asked: list[Any], tmp_path: Path, capsys: Captured, content: str, named: str
) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(content)
    assert run(["compress", "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
    assert asked == []


def test_a_missing_file_is_one_line(asked: list[Any], capsys: Captured) -> None:
    assert run(["compress", "--config", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_resume_takes_no_other_options(asked: list[Any], tmp_path: Path, capsys: Captured) -> None:
    assert run(["compress", "--resume", str(tmp_path)]) == 0
    assert asked[0][1] == tmp_path
    assert run(["compress", "--resume", str(tmp_path), "--batch-size", "8"]) == 2
    assert "--batch-size" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise compress_module.Interrupted(tmp_path)

    monkeypatch.setattr(compress_module, "compress", interrupted)
    assert run(["compress"]) == 130
    assert capsys.readouterr().err == f"interrupted; to continue: finepruning compress --resume {tmp_path}\n"


def test_an_interrupt_before_there_is_a_run(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compress_module, "compress", interrupted)
    assert run(["compress"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_dry_run_shows_the_plan_and_does_nothing(
    monkeypatch: pytest.MonkeyPatch, asked: list[Any], capsys: Captured
) -> None:
    plan = {
        "config": {"rounds": 2, "out": "runs/x"},
        "classes": ["a", "b"],
        "layers": [{"name": "features.0", "shape": [8, 3, 3, 3], "size": 216}],
        "estimate_seconds": 12.34567,
    }
    monkeypatch.setattr(compress_module, "dry_run", lambda config: plan)
    assert run(["compress", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "features.0" in text
    assert "12.35" in text
    assert asked == []
    assert run(["compress", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == plan
