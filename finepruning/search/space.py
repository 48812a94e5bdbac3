"""The two parameterisations of a search: points of the unit cube and the masks they mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from finepruning.pruning import ALLOCATION_RULES, Keep, exact_cut, kept, scaled_magnitudes, theta_for
from finepruning.search.trial import Proposal


class Space(Protocol):
    """Maps points of the unit cube (one coordinate a layer) to theta and to masks."""

    name: str
    dimensions: int

    def theta(self, x: Sequence[float]) -> tuple[float, ...]: ...

    def masks(self, x: Sequence[float]) -> list[Tensor]: ...

    def canonical(self, x: Sequence[float]) -> tuple[float, ...]:
        """The representative of all points that mean the same masks."""
        ...

    def objective(self, loss: float, error: float, density: float) -> float: ...

    def starts(self, previous: Sequence[float] | None) -> list[Proposal]:
        """Points to evaluate first; the very first is global magnitude pruning."""
        ...


class BudgetSpace:
    """Score ``|w| * exp(theta_l)`` under one global cut: every point has the round's density, or its cost."""

    name = "budget"

    def __init__(self, weights: Sequence[Tensor], keep: Keep, bound: float) -> None:
        self.dimensions = len(weights)
        self._weights = weights
        self._keep = keep
        self._bound = bound

    def theta(self, x: Sequence[float]) -> tuple[float, ...]:
        return tuple((2.0 * value - 1.0) * self._bound for value in x)

    def masks(self, x: Sequence[float]) -> list[Tensor]:
        scores = scaled_magnitudes(self._weights, self.theta(x))
        return exact_cut(scores, kept(self._keep, scores))

    def canonical(self, x: Sequence[float]) -> tuple[float, ...]:
        shift = sum(x) / len(x) - 0.5
        return tuple(min(1.0, max(0.0, value - shift)) for value in x)

    def objective(self, loss: float, error: float, density: float) -> float:
        return loss

    def starts(self, previous: Sequence[float] | None) -> list[Proposal]:
        points = [Proposal(self._point([0.0] * self.dimensions), "global")]
        if previous is not None:
            points.append(Proposal(self._point(previous), "previous"))
        keep = kept(self._keep, self._weights)
        for name in ("lamp", "erk", "uniform"):
            counts = ALLOCATION_RULES[name](self._weights, keep)
            points.append(Proposal(self._point(theta_for(self._weights, counts)), name))
        return _distinct(points)

    def _point(self, theta: Sequence[float]) -> tuple[float, ...]:
        return self.canonical([min(1.0, max(0.0, 0.5 + value / (2 * self._bound))) for value in theta])


class PaperSpace:
    """One magnitude threshold a layer; minimise ``error - lambda * sparsity`` (Tung et al., BMVC 2017).

    A coordinate runs, on a log scale, from the threshold that keeps ``lowest`` to the one that keeps
    ``highest`` of the layer's weights.
    """

    name = "paper"

    def __init__(self, weights: Sequence[Tensor], keep: int, trade_off: float) -> None:
        self.dimensions = len(weights)
        self._weights = weights
        self._keep = keep
        self._lambda = trade_off
        density = keep / sum(weight.numel() for weight in weights)
        self._ranges = [_log_thresholds(weight, min(1.0, 4 * density), density / 4) for weight in weights]

    def theta(self, x: Sequence[float]) -> tuple[float, ...]:
        """Minus the log thresholds, so that one global cut keeps their proportions at any budget."""
        logs = [low + value * (high - low) for value, (low, high) in zip(x, self._ranges, strict=True)]
        mean = sum(logs) / len(logs)
        return tuple(mean - value for value in logs)

    def masks(self, x: Sequence[float]) -> list[Tensor]:
        masks = []
        for value, (low, high), weight in zip(x, self._ranges, self._weights, strict=True):
            magnitudes = weight.detach().abs().float()
            threshold = min(math.exp(low + value * (high - low)), float(magnitudes.max()))
            masks.append(magnitudes >= threshold)
        return masks

    def canonical(self, x: Sequence[float]) -> tuple[float, ...]:
        return tuple(float(value) for value in x)

    def objective(self, loss: float, error: float, density: float) -> float:
        return error - self._lambda * (1.0 - density)

    def starts(self, previous: Sequence[float] | None) -> list[Proposal]:
        rules = {name: rule(self._weights, self._keep) for name, rule in ALLOCATION_RULES.items()}
        points = [Proposal(self._point(counts), name) for name, counts in rules.items()]
        if previous is not None:
            masks = exact_cut(scaled_magnitudes(self._weights, previous), self._keep)
            points.insert(1, Proposal(self._point([int(mask.sum()) for mask in masks]), "previous"))
        return _distinct(points)

    def _point(self, counts: Sequence[int]) -> tuple[float, ...]:
        point = []
        for weight, count, (low, high) in zip(self._weights, counts, self._ranges, strict=True):
            threshold, _ = _log_thresholds(weight, count / weight.numel(), 0.0)
            point.append(min(1.0, max(0.0, (threshold - low) / max(high - low, 1e-12))))
        return tuple(point)


def _log_thresholds(weight: Tensor, highest: float, lowest: float) -> tuple[float, float]:
    """Logs of the thresholds that keep the fractions ``highest`` and ``lowest`` (at least one weight)."""
    magnitudes = weight.detach().reshape(-1).abs().float()
    tiny = torch.finfo(torch.float32).tiny
    logs = []
    for fraction in (highest, lowest):
        count = max(1, round(fraction * magnitudes.numel()))
        value = float(magnitudes.kthvalue(magnitudes.numel() - count + 1).values)
        logs.append(math.log(max(value, tiny)))
    return logs[0], logs[1]


def _distinct(points: Sequence[Proposal]) -> list[Proposal]:
    """Leave out later points equal to earlier ones up to rounding."""
    kept: list[Proposal] = []
    for point in points:
        if all(max(abs(a - b) for a, b in zip(point.x, other.x, strict=True)) > 1e-6 for other in kept):
            kept.append(point)
    return kept
