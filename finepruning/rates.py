"""The learning rate of every step of a run."""

from __future__ import annotations

from collections.abc import Callable

from finepruning.config import CompressConfig
from finepruning.phases import Phase
from finepruning.training import cosine, rise_and_decay


def learning_rate(
    config: CompressConfig, phase: Phase, peak: float, epoch: int, steps: int
) -> Callable[[int], float]:
    """Learning rate of a step of this epoch (both from 0), of ``steps`` in each epoch of the phase."""
    warmup = min(config.warmup, phase.epochs / 2) if phase.kind == "dense" else 0.0

    def rate(step: int) -> float:
        if phase.kind == "round" and config.lr_schedule == "hold":
            return peak
        if config.lr_schedule == "rise":
            return rise_and_decay(epoch * steps + step, phase.epochs * steps, peak)
        return cosine(epoch * steps + step, phase.epochs * steps, peak, round(warmup * steps))

    return rate
