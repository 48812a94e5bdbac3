"""`--max-accuracy-drop`: which state a run ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_config
from torch import nn

from finepruning import loop as loop_module
from finepruning.compress import Interrupted, compress, dry_run
from finepruning.config import CompressConfig
from finepruning.errors import ArgumentError
from finepruning.progress import NoProgress
from finepruning.targets import AccuracyTarget
from finepruning.training import Evaluation

pytestmark = pytest.mark.usefixtures("tiny")
SIZE = 450  # weights of the tiny network


@pytest.fixture
def judged_by_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of at least 100 weights have an accuracy of 0.9, others of 0.8."""

    def fake(module: nn.Module, *_: object) -> Evaluation:
        nonzero = sum(int(torch.count_nonzero(w)) for w in module.parameters() if w.dim() > 1)
        return Evaluation(0.5, 0.9 if nonzero >= 100 else 0.8, 0.5)

    monkeypatch.setattr(loop_module, "evaluate", fake)


def config(images: Path, out: Path, drop: float, **options: Any) -> CompressConfig:
    values = {"search": "none", "epochs": 1, "rounds": 6, "target_density": None, "max_accuracy_drop": drop}
    return tiny_config(images, out, **{**values, **options})


@pytest.mark.usefixtures("judged_by_weights")
@pytest.mark.parametrize("options", [{}, {"splicing": False}, {"final_epochs": 0}])
def test_rounds_close_in_on_the_smallest_that_holds(
    options: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    """225 and 112 weights hold, 56 do not; then steps of half the size on a logarithmic scale."""
    report = compress(config(images, tmp_path / "run", 5.0, **options))
    rounds = report["rounds"]
    assert [round(SIZE * entry["density"]) for entry in rounds] == [225, 112, 56, 79, 94, 103]
    assert [entry["held"] for entry in rounds] == [True, True, False, False, False, True]
    assert sum(layer["nnz"] for layer in report["layers"]) == 103
    found = report["target"]
    assert (found["name"], found["asked"], found["good_round"]) == ("max_accuracy_drop", 5.0, 6)
    assert report["accuracy"] == report["sparse_accuracy"]
    assert report["pareto"][-1]["density"] == report["density"]
    assert [file.name for file in (tmp_path / "run" / "checkpoints").glob("good-*")] == ["good-6.safetensors"]


@pytest.mark.usefixtures("judged_by_weights")
def test_the_last_good_state_is_what_a_run_ends_with(images: Path, tmp_path: Path) -> None:
    report = compress(config(images, tmp_path / "run", 5.0, rounds=3, final_epochs=0))
    assert sum(layer["nnz"] for layer in report["layers"]) == 112
    two = compress(config(images, tmp_path / "two", 5.0, rounds=2, final_epochs=0))
    assert two["layers"] == report["layers"]
    first, second = ((tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("run", "two"))
    assert first == second
    text = (tmp_path / "run" / "report.md").read_text()
    assert "5 may be lost" in text


def test_where_nothing_may_be_lost_and_everything_is_the_network_stays_dense(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling = iter([0.9 - 0.01 * step for step in range(50)])
    monkeypatch.setattr(loop_module, "evaluate", lambda *_: Evaluation(0.5, next(falling), 0.5))
    report = compress(config(images, tmp_path / "run", 0.0, rounds=2))
    assert report["density"] == 1.0
    assert report["target"]["good_round"] == 0
    assert report["target"]["final_kept"] is False


@pytest.mark.usefixtures("judged_by_weights")
@pytest.mark.parametrize("units", [9, 15, 20, 26, 33])
def test_an_interrupted_run_ends_with_the_same_file(units: int, images: Path, tmp_path: Path) -> None:
    class Stop(NoProgress):
        left = units

        def advance(self, units: int = 1, **_: float) -> None:
            self.left -= units
            if self.left < 0:
                raise KeyboardInterrupt

    compress(config(images, tmp_path / "a", 5.0, rounds=4))
    with pytest.raises(Interrupted):
        compress(config(images, tmp_path / "b", 5.0, rounds=4), progress=Stop())
    compress(CompressConfig(), resume=tmp_path / "b")
    first, second = ((tmp_path / run / "model" / "model.safetensors").read_bytes() for run in "ab")
    assert first == second


def test_a_final_phase_that_loses_accuracy_is_dropped() -> None:
    target = AccuracyTarget(
        CompressConfig(max_accuracy_drop=1.0, rounds=1), {"a": nn.Parameter(torch.ones(100))}
    )
    assert target.judge(0, 0.9, 1.0) is True
    target.begin(1, [torch.ones(100)])
    assert target.judge(1, 0.89, 0.5) is True  # exactly as much as may be lost
    assert target.judge(2, 0.88, 0.5) is False
    assert target.judge(2, 0.895, 0.5) is None


def test_dry_run_shows_how_far_it_could_go(images: Path, tmp_path: Path) -> None:
    rounds = dry_run(config(images, tmp_path / "run", 1.0, rounds=3))["rounds"]
    assert [entry["weights"] for entry in rounds] == [225, 112, 56]


@pytest.mark.parametrize("drop", [-1.0, 100.0, float("nan")])
def test_impossible_drops_are_refused(drop: float) -> None:
    with pytest.raises(ArgumentError, match=r"max_accuracy_drop .* percentage points"):
        CompressConfig(max_accuracy_drop=drop)
