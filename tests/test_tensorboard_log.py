"""`--tensorboard`: what a run writes can be read by TensorBoard, and is what the report says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_run import make_images, tiny_config, use_tiny_network

from finepruning.compress import Interrupted, compress
from finepruning.config import CompressConfig
from finepruning.errors import ArgumentError
from finepruning.progress import NoProgress
from finepruning.run import RunDirectory


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_tiny_network(monkeypatch.setattr)
    make_images(tmp_path / "photos")
    return tmp_path / "photos"


class StopInTheFinalPhase(NoProgress):
    """Interrupts the first epoch of the final phase."""

    final = False

    def start(self, phase: str) -> None:
        self.final = phase.startswith("final")

    def advance(self, units: int = 1, **metrics: float) -> None:
        if self.final and metrics:
            raise KeyboardInterrupt


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) of everything in the run's event files."""
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    found = events.EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }


def test_every_epoch_trial_and_layer_is_drawn_once(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    out = tmp_path / "run"
    config = tiny_config(images, out, search="random", trials=2, tensorboard=True)
    with pytest.raises(Interrupted):
        compress(config, progress=StopInTheFinalPhase())
    report = compress(CompressConfig(), resume=out)
    drawn = scalars(out)
    history = report["history"]
    for name in ("train_loss", "validation_loss", "validation_accuracy", "lr", "density"):
        expected = [(step, entry[name]) for step, entry in enumerate(history, 1)]
        assert [step for step, _ in drawn[name]] == [step for step, _ in expected]
        assert [value for _, value in drawn[name]] == pytest.approx([value for _, value in expected])
    trials = RunDirectory.peek(out).trials()
    assert [value for _, value in drawn["trial/loss"]] == pytest.approx([trial.loss for trial in trials])
    assert [step for step, _ in drawn["trial/loss"]] == [1, 2, 3, 4]
    assert [step for step, _ in drawn["layer_density/0"]] == [1, 2]


def test_nothing_is_written_without_it(images: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"search": "none", "rounds": 1, "epochs": 1, "dense_epochs": 0}
    compress(tiny_config(images, tmp_path / "run", **options))
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_without_tensorboard_the_run_does_not_start(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ArgumentError, match=r"pip install 'finepruning\[tensorboard\]'"):
        compress(tiny_config(images, tmp_path / "run", tensorboard=True))
    assert not (tmp_path / "run").exists()
