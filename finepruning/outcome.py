"""The end of a run: the model as it will be deployed, its test, and the report."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from finepruning import data, mistakes, models
from finepruning.config import TARGETS, CompressConfig
from finepruning.good_state import dense_network
from finepruning.loop import Loop
from finepruning.progress import Progress
from finepruning.run import DENSE, REPORT, RunDirectory
from finepruning.targets import Target
from finepruning.training import Attack, evaluate, robust_accuracy
from finepruning.training.evaluate import Evaluation

if TYPE_CHECKING:
    from finepruning.engine import SparseModel


def finish(
    config: CompressConfig,
    splits: data.Splits,
    network: models.Network,
    target: Target,
    run: RunDirectory,
    loop: Loop,
    progress: Progress,
) -> dict[str, Any]:
    """Export the model, look at the test split for the first time, and write the report."""
    from finepruning import report as reporting
    from finepruning.engine import SparseModel

    started = time.perf_counter()
    device = torch.device(config.device or "cpu")
    module = network.module.eval().to(memory_format=torch.contiguous_format)
    place = run.path / "model"
    for left in (place, *run.path.glob(".model-*")):  # by an export that was interrupted
        if left.exists():
            shutil.rmtree(left)
    sparse_model(config, splits, network).save_pretrained(place)
    progress.advance()
    accuracy = _test(module, splits, device)
    dense = dense_network(run, module)
    dense_accuracy = _test(dense, splits, device)
    progress.advance()
    sparse = SparseModel.from_pretrained(place, device=str(device))
    answers = mistakes.ask(sparse, splits.test.batches(32), device)
    seconds = {**loop.facts.seconds, "export": time.perf_counter() - started}
    seconds["total"] = sum(seconds.values())
    layers = _layers(loop.layers)
    last = _last(loop, splits)
    content: dict[str, Any] = {
        "name": run.path.name,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "model": network.name,
        "data": splits.name,
        "seed": config.seed,
        "config": dataclasses.asdict(config),
        "environment": run.environment(),
        "dense_accuracy": dense_accuracy.accuracy,
        "dense_validation_loss": loop.facts.dense["validation_loss"],
        "accuracy": accuracy.accuracy,
        "validation_accuracy": last["accuracy"],
        "sparse_accuracy": answers.accuracy,
        "density": _density(layers),
        "target_density": config.target_density,
        "bytes_dense": (run.path / DENSE).stat().st_size,
        "bytes_sparse": sum(file.stat().st_size for file in place.rglob("*") if file.is_file()),
        "classes": list(splits.classes),
        "images": split_sizes(splits),
        "layers": layers,
        "seconds": seconds,
        "rounds": loop.facts.rounds,
        "from_run": loop.facts.from_run,
        "pareto": _pareto(run, loop, {**last, "density": _density(layers)}),
        "history": loop.facts.history,
        "confusion": mistakes.describe(answers, splits.test, run.path),
    }
    content["target"] = target.outcome(content)
    content["wise_ft_alpha"] = loop.facts.alpha
    content["robust"] = _robust(config, splits, dense, module)
    reporting.write(run.path, content)
    run.write_json(REPORT, content)  # last: it marks the run as finished
    progress.advance()
    return content


def sparse_model(config: CompressConfig, splits: data.Splits, network: models.Network) -> SparseModel:
    """The network as it is now, as the run's model directory will hold it."""
    from finepruning.engine import SparseModel

    size = network.image_size
    return SparseModel.from_dense(
        network.module,
        torch.zeros(1, 3, size, size, device=torch.device(config.device or "cpu")),
        preprocessing=splits.preprocessing.to_json(),
        classes=splits.classes,
        provenance=_provenance(config, splits),
    )


def _robust(
    config: CompressConfig, splits: data.Splits, dense: nn.Module, module: nn.Module
) -> dict[str, Any] | None:
    """Test accuracy against attacks that are four times as long as those of the training."""
    if config.adversarial_epsilon == 0.0:
        return None
    wanted, steps = splits.preprocessing, 4 * config.adversarial_steps
    strong = Attack(config.adversarial_epsilon, steps, wanted.mean, wanted.std)
    device = torch.device(config.device or "cpu")
    accuracies = {
        name: robust_accuracy(network, splits.test.batches(32), strong, device)
        for name, network in (("dense_accuracy", dense), ("accuracy", module))
    }
    return {"epsilon": config.adversarial_epsilon, "steps": steps, **accuracies}


def _test(model: nn.Module, splits: data.Splits, device: torch.device) -> Evaluation:
    return evaluate(model, splits.test.batches(32), device)


def _layers(layers: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
    rows = []
    for name, weight in layers.items():
        nnz, size = int(torch.count_nonzero(weight)), weight.numel()
        rows.append(
            {"name": name, "shape": list(weight.shape), "size": size, "nnz": nnz, "density": nnz / size}
        )
    return rows


def _density(layers: list[dict[str, Any]]) -> float:
    return float(sum(layer["nnz"] for layer in layers) / sum(layer["size"] for layer in layers))


def _last(loop: Loop, splits: data.Splits) -> dict[str, float]:
    """Validation figures of the network as it is at the end."""
    if loop.config.max_accuracy_drop is not None or loop.config.wise_ft:  # not that of the last epoch
        result = evaluate(
            loop.module, splits.validation.batches(32), torch.device(loop.config.device or "cpu")
        )
        return {"loss": result.loss, "accuracy": result.accuracy}
    entry = loop.facts.history[-1] if loop.facts.history else loop.facts.rounds[-1]
    return {"loss": entry["validation_loss"], "accuracy": entry["validation_accuracy"]}


def _pareto(run: RunDirectory, loop: Loop, last: dict[str, float]) -> list[dict[str, Any]]:
    """Density against validation loss and accuracy, of everything that was evaluated."""
    dense = loop.facts.dense
    rounds = loop.facts.rounds
    return [
        _point(1.0, dense["validation_loss"], dense["validation_accuracy"], "dense"),
        *(_point(t.density, t.loss, t.accuracy, "trial") for t in run.trials()),
        *(_point(r["density"], r["validation_loss"], r["validation_accuracy"], "round") for r in rounds),
        _point(last["density"], last["loss"], last["accuracy"], "final"),
    ]


def _point(density: float, loss: float, accuracy: float, kind: str) -> dict[str, Any]:
    return {"density": density, "loss": loss, "accuracy": accuracy, "kind": kind}


def _provenance(config: CompressConfig, splits: data.Splits) -> dict[str, Any]:
    """Where the model came from, without paths and times: equal runs give equal files."""
    return {
        "model": config.model,
        "data": Path(splits.name).name,
        "seed": config.seed,
        "search": config.search,
        **{name: getattr(config, name) for name in TARGETS if getattr(config, name) is not None},
        **({} if config.from_run is None else {"from_run": Path(config.from_run).name}),
    }


def split_sizes(splits: data.Splits) -> dict[str, int]:
    return {
        "train": len(splits.train),
        "validation": len(splits.validation),
        "test": len(splits.test),
    }
