"""Writing a finished run's report again, with what has been learnt about the run since."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from finepruning import data, mistakes, models
from finepruning.config import CompressConfig
from finepruning.engine import SparseModel
from finepruning.errors import RunError
from finepruning.report import write
from finepruning.run import REPORT, RunDirectory


def run_data(config: CompressConfig) -> data.Splits:
    """The splits that a run with this (resolved) configuration uses.

    Raises:
        DataError: the data cannot be used any more.
    """
    spec = models.input_spec(config.model)
    return data.load(
        config.data,
        image_size=config.image_size or spec.image_size,
        mean=spec.mean,
        std=spec.std,
        seed=config.seed,
        workers=config.workers,
        augmentation=config.augmentation,
    )


def rewrite(
    path: Path, *, test: bool = False, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Write report.md, report.html and pareto.png of a finished run anew.

    Args:
        path: the run. test: also run the model over the test split again, for the confusion matrix.
        say: receives a line before a long step.

    Returns:
        The report.

    Raises:
        RunError: no finished run, or it is in use. DataError: ``test``, and the data is no more.
    """
    with RunDirectory.open(path) as run:
        report = run.report()
        if report is None:
            raise RunError(f"{path} is not finished; finish it with compress --resume {path}")
        if test:
            say("looking at the test images")
            splits = run_data(run.config())
            model = SparseModel.from_pretrained(run.path / "model")
            answers = mistakes.ask(model, splits.test.batches(32), torch.device("cpu"))
        with run.writing("try again when it can be written"):
            if test:
                report["confusion"] = mistakes.describe(answers, splits.test, run.path)
            write(run.path, report)
            if test:
                run.write_json(REPORT, report)
        return json.loads(json.dumps(report))  # type: ignore[no-any-return]
