"""The smallest network that loses at most so much validation accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from finepruning.config import CompressConfig
from finepruning.targets.base import CountTarget

MAX_ACCURACY_DROP = "max_accuracy_drop"
FIRST_RATIO = 0.5
_ROUNDING = 1e-6  # accuracies are float32 means


class AccuracyTarget(CountTarget):
    """``--max-accuracy-drop``: rounds of falling density as long as the retrained accuracy holds.

    Each round keeps half of what the last good one kept. When accuracy is lost, the run goes back to that one
    and takes half the step, on a logarithmic scale, from then on: a bisection that ends with the rounds. The
    final fine-tuning starts from the last good round, and is dropped if it loses what that round had.
    """

    name = MAX_ACCURACY_DROP

    def __init__(self, config: CompressConfig, layers: Mapping[str, nn.Parameter]) -> None:
        assert config.max_accuracy_drop is not None
        self.asked = config.max_accuracy_drop
        self.state: dict[str, Any] = {"ratio": FIRST_RATIO, "good": 0, "good_density": 1.0}
        self._rounds = config.rounds
        self._layers = len(layers)
        self._total = sum(weight.numel() for weight in layers.values())

    def begin(self, number: int, saliency: Sequence[Tensor]) -> None:
        density = self.state["good_density"] * self.state["ratio"]
        keep = max(self._layers, round(density * self._total))
        self.state |= {"density": keep / self._total, "keep": keep}

    def judge(self, number: int, accuracy: float, density: float) -> bool | None:
        if number == 0:
            self.state["dense_accuracy"] = accuracy
            return True
        holds: bool = accuracy >= self.state["dense_accuracy"] - self.asked / 100.0 - _ROUNDING
        if number > self._rounds:
            self.state["final_kept"] = holds
            return None if holds else False
        if holds:
            self.state |= {"good": number, "good_density": density}
        else:
            self.state["ratio"] **= 0.5
        return holds

    def outcome(self, report: Mapping[str, Any]) -> dict[str, Any]:
        dense, reached = self.state["dense_accuracy"], report["validation_accuracy"]
        return {
            "name": self.name,
            "asked": self.asked,
            "reached": 100.0 * (dense - reached),
            "dense_validation_accuracy": dense,
            "validation_accuracy": reached,
            "good_round": self.state["good"],
            "final_kept": self.state.get("final_kept"),
        }
