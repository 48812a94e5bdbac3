"""What `--tensorboard` writes: the figures of every epoch, trial and round, under ``RUN/tensorboard``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finepruning.errors import ArgumentError
from finepruning.search import Trial

FOLDER = "tensorboard"
EPOCH = ("train_loss", "validation_loss", "validation_accuracy", "lr", "density")
"""Columns of the report's ``history`` that are drawn."""


def check_installed() -> None:
    """Raise ArgumentError where TensorBoard is missing."""
    _writer_class()


class TensorBoardLog:
    """Scalars named like the columns of the report. Steps are epochs, trials and rounds of the whole run,
    from 1; a resumed run adds to what is there.
    """

    def __init__(self, run_dir: Path) -> None:
        """Raises ArgumentError where TensorBoard is not installed."""
        self._writer = _writer_class()(str(run_dir / FOLDER))

    def epoch(self, step: int, entry: Mapping[str, Any]) -> None:
        """An entry of the report's ``history``."""
        for name in EPOCH:
            self._writer.add_scalar(name, entry[name], step)
        self._writer.flush()

    def trial(self, step: int, trial: Trial) -> None:
        """An evaluated candidate."""
        for name in ("loss", "accuracy", "density"):
            self._writer.add_scalar(f"trial/{name}", getattr(trial, name), step)

    def round(self, step: int, densities: Mapping[str, float]) -> None:
        """Density of each layer after a search, by layer name."""
        for name, density in densities.items():
            self._writer.add_scalar(f"layer_density/{name}", density, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _writer_class() -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError:
        raise ArgumentError(
            "tensorboard needs a package; install it with: pip install 'finepruning[tensorboard]'"
        ) from None
