"""What pruning one layer alone does: loss and accuracy over a grid of densities, layer by layer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finepruning import data, models
from finepruning.config import AUGMENTATIONS
from finepruning.data.augmentation import margin
from finepruning.dense import DenseNetwork
from finepruning.engine import SparseModel
from finepruning.errors import ArgumentError, DataError, RunError
from finepruning.predict import preprocessing_of
from finepruning.progress import NoProgress, Progress
from finepruning.pruning import prunable_layers
from finepruning.rendering import run_data
from finepruning.report import write
from finepruning.report.writer import SENSITIVITY
from finepruning.run import DENSE, RunDirectory
from finepruning.sparse.storage import load
from finepruning.training import evaluate

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02)
PHASE = "sensitivity"

Batches = Sequence[tuple[Tensor, Tensor]]


def sensitivity_of_run(
    path: Path, *, densities: Sequence[float] = DENSITIES, images: int = 512, progress: Progress | None = None
) -> dict[str, Any]:
    """Measure the dense network that a run ended its first phase with, on the run's validation images.

    Args:
        path: a run, at least past its dense phase. densities: kept shares to try, in (0, 1).
        images: validation images to use at most. progress: is told of every evaluation.

    Returns:
        As `measure`. It is stored as ``sensitivity.json`` in the run, and a finished run's report shows it.

    Raises:
        RunError: no such run, or its dense phase has not ended. DataError: its data is no more.
    """
    _check(densities, images)
    with RunDirectory.open(path) as run:
        config = run.config()
        stored = run.read_tensors(DENSE)
        if stored is None:
            raise RunError(f"{path} has no dense network yet; go on with compress --resume {path}")
        splits = run_data(config)
        network = models.create(
            config.model, len(splits.classes), "none", config.seed, image_size=config.image_size
        ).module
        try:
            network.load_state_dict(stored[0])
        except RuntimeError:
            raise RunError(f"{path / DENSE} is another network than this run's data and model give") from None
        layers = prunable_layers(network)
        result = measure(network, layers, _batches(splits, images), densities, progress=progress)
        run.write_json(SENSITIVITY, result)
        report = run.report()
        if report is not None:
            write(run.path, report)
        return result


def sensitivity_of_model(
    directory: Path,
    folder: str,
    *,
    densities: Sequence[float] = DENSITIES,
    images: int = 512,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a stored model on the validation images of ``folder`` (split as `compress` would, seed 0).

    Raises:
        ModelFileError: no valid model, or it does not say how images are prepared.
        DataError: the folder cannot be used, or its classes are not the model's.
    """
    _check(densities, images)
    stored = load(directory)
    model = SparseModel(stored)
    wanted = preprocessing_of(model)
    side = wanted.image_size
    splits = data.load(
        folder,
        image_size=side,
        mean=wanted.mean,
        std=wanted.std,
        seed=0,
        augmentation=next((a for a in AUGMENTATIONS if margin(a, side) == wanted.resize), "none"),
    )
    if model.classes is not None and tuple(splits.classes) != tuple(model.classes):
        raise DataError(
            f"{folder}: its classes ({', '.join(splits.classes[:4])}, ...) are not those of the model "
            f"({', '.join(model.classes[:4])}, ...)"
        )
    network = DenseNetwork(stored)
    return measure(network, network.weights, _batches(splits, images), densities, progress=progress)


def measure(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    batches: Batches,
    densities: Sequence[float],
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prune one weight at a time by magnitude, evaluate, and put it back.

    Args:
        network: on the CPU; left as it was. weights: the parameters to prune, by layer name.
        batches: images float32 [b, 3, s, s] and labels int64 [b].
        densities: kept share of the layer's weights.

    Returns:
        ``images``, ``densities`` (falling), ``loss`` and ``accuracy`` of the whole network, and ``layers``:
        name, size, density (as found), and ``loss`` and ``accuracy`` a density. The loss is the cross
        entropy at the best temperature, as in the search. BatchNorm statistics stay as they are.
    """
    progress = progress or NoProgress()
    falling = sorted(set(densities), reverse=True)
    progress.plan([(PHASE, 1 + len(weights) * len(falling))])
    progress.start(PHASE)
    device = torch.device("cpu")
    whole = evaluate(network, batches, device)
    progress.advance()
    layers = []
    for name, weight in weights.items():
        found = weight.detach().clone()
        nonzero = int(found.count_nonzero())
        losses, accuracies = [], []
        try:
            for density in falling:
                keep = max(1, round(density * weight.numel()))
                result = whole
                if keep < nonzero:
                    _keep_largest(weight, found, keep)
                    result = evaluate(network, batches, device)
                losses.append(result.calibrated_loss)
                accuracies.append(result.accuracy)
                progress.advance(accuracy=result.accuracy)
        finally:
            weight.data.copy_(found)
        layers.append(
            {"name": name, "size": weight.numel(), "density": nonzero / weight.numel()}
            | {"loss": losses, "accuracy": accuracies}
        )
    return {
        "images": sum(len(labels) for _, labels in batches),
        "densities": falling,
        "loss": whole.calibrated_loss,
        "accuracy": whole.accuracy,
        "layers": layers,
    }


def _keep_largest(weight: Tensor, found: Tensor, keep: int) -> None:
    order = found.abs().flatten().topk(keep, sorted=False).indices
    mask = torch.zeros(found.numel(), dtype=torch.bool)
    mask[order] = True
    weight.data.copy_(found * mask.view(found.shape))


def _batches(splits: data.Splits, images: int) -> list[tuple[Tensor, Tensor]]:
    size = min(64, images)
    return list(itertools.islice(splits.validation.batches(size, shuffle=0), max(1, images // size)))


def _check(densities: Sequence[float], images: int) -> None:
    if not densities or not all(0.0 < density < 1.0 for density in densities):
        raise ArgumentError("densities must be above 0 and below 1, such as 0.5,0.2,0.1")
    if images < 1:
        raise ArgumentError(f"images is {images}; it must be at least 1")
