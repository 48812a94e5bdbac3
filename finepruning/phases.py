"""What the fine-pruning loop will do, in order, and what it knows on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from finepruning.config import CompressConfig
from finepruning.data import Splits
from finepruning.training import Attack, Recipe, cosine, rise_and_decay


@dataclass(frozen=True)
class Phase:
    """One entry of the loop: ``kind`` is "dense", "search", "round" or "final"."""

    kind: str
    round: int
    title: str
    epochs: int = 0


@dataclass
class Facts:
    """What the loop knows besides tensors; JSON all through.

    Attributes:
        phase, step: index of the phase to go on with, and how many of its epochs are done.
        averaged: steps that the mean of the weights has taken in during this phase.
        theta: of the current round. previous: theta of the round before.
        spliced: weights re-admitted in the current round so far.
        alpha: share of the fine-tuned weights in the mixture that the run ends with, where it mixes.
        target: what the run's target knows, see `finepruning.targets`.
        dense: validation loss and accuracy of the dense network.
        rounds, history, seconds: as in report.json.
        from_run: the run that this one starts from: name, density, accuracy, seconds; None without one.
    """

    phase: int = 0
    step: int = 0
    averaged: int = 0
    theta: list[float] = field(default_factory=list)
    previous: list[float] | None = None
    spliced: int = 0
    alpha: float | None = None
    target: dict[str, Any] = field(default_factory=dict)
    dense: dict[str, float] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    from_run: dict[str, Any] | None = None
    seconds: dict[str, float] = field(
        default_factory=lambda: {"dense": 0.0, "search": 0.0, "fine_tune": 0.0, "final": 0.0}
    )


def phases(config: CompressConfig) -> list[Phase]:
    """The phases of a run, in order."""
    result = [Phase("dense", 0, "dense fine-tuning", config.dense_epochs)] if config.from_run is None else []
    for number in range(1, config.rounds + 1):
        title = f"round {number}/{config.rounds}"
        result.append(Phase("search", number, f"{title}: search"))
        result.append(Phase("round", number, f"{title}: fine-tuning", config.epochs))
    result.append(Phase("final", config.rounds, "final fine-tuning", config.final_epochs))
    return result


def budget(config: CompressConfig, number: int, target: float | None = None, start: float = 1.0) -> float:
    """Density after round ``number`` (from 1); the last is ``target``, or else the configuration's.

    ``start`` is the density before the first round. From below the target every round has the target: more
    weights need no small steps.
    """
    target = config.target_density if target is None else target
    assert target is not None
    if start <= target:
        return target
    done = number / config.rounds
    if config.density_schedule == "cubic":
        return float(target + (start - target) * (1.0 - done) ** 3)
    return float(start * (target / start) ** done)


def recipe(config: CompressConfig, phase: Phase, device: torch.device) -> Recipe:
    """How a phase trains."""
    limit = config.max_grad_norm
    if phase.kind != "dense" and config.prune_max_grad_norm is not None:
        limit = config.prune_max_grad_norm
    return Recipe(
        device,
        config.precision,
        max_grad_norm=limit,
        distillation=config.distillation,
        temperature=config.temperature,
        label_smoothing=config.label_smoothing,
    )


def peak_rate(config: CompressConfig, phase: Phase) -> float:
    """The highest learning rate of a phase."""
    return config.lr if phase.kind == "dense" or config.prune_lr is None else config.prune_lr


def learning_rate(config: CompressConfig, phase: Phase, epoch: int, steps: int) -> Callable[[int], float]:
    """Learning rate of a step of epoch ``epoch`` (from 0), which has ``steps``."""
    peak = peak_rate(config, phase)
    warmup = min(config.warmup, phase.epochs / 2) if phase.kind == "dense" else 0.0

    def rate(step: int) -> float:
        if phase.kind == "round" and config.lr_schedule == "hold":
            return peak
        if config.lr_schedule == "rise":
            return rise_and_decay(epoch * steps + step, phase.epochs * steps, peak)
        return cosine(epoch * steps + step, phase.epochs * steps, peak, round(warmup * steps))

    return rate


def gentler(config: CompressConfig, phase: Phase) -> str:
    """Options with which training may go on where its loss became no number."""
    prefix = "--" if phase.kind == "dense" else "--prune-"
    options = f"{prefix}lr {peak_rate(config, phase) / 4:.2g}"
    limit = recipe(config, phase, torch.device("cpu")).max_grad_norm
    return options if 0 < limit <= 1 else f"{options} {prefix}max-grad-norm 1"


def attack(config: CompressConfig, splits: Splits) -> Attack | None:
    """What changes the training images, where something does."""
    if config.adversarial_epsilon == 0.0:
        return None
    wanted = splits.preprocessing
    return Attack(config.adversarial_epsilon, config.adversarial_steps, wanted.mean, wanted.std)
