"""How many weights each layer keeps under the simple rules that search is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finepruning.pruning.cut import exact_cut, scaled_magnitudes

Allocation = Callable[[Sequence[Tensor], int], list[int]]


def global_magnitude(weights: Sequence[Tensor], keep: int) -> list[int]:
    """Counts left by one magnitude threshold for all layers."""
    masks = exact_cut(scaled_magnitudes(weights, [0.0] * len(weights)), keep)
    return [int(mask.sum()) for mask in masks]


def uniform(weights: Sequence[Tensor], keep: int) -> list[int]:
    """The same density in every layer."""
    return _fill([1.0] * len(weights), [weight.numel() for weight in weights], keep)


def erk(weights: Sequence[Tensor], keep: int) -> list[int]:
    """Erdos-Renyi-Kernel: density proportional to sum(shape) / prod(shape) (Evci et al., ICML 2020)."""
    factors = [sum(weight.shape) / weight.numel() for weight in weights]
    return _fill(factors, [weight.numel() for weight in weights], keep)


def lamp(weights: Sequence[Tensor], keep: int) -> list[int]:
    """Layer-adaptive magnitude pruning: one cut through ``w^2 / sum of w'^2 with |w'| >= |w|`` of the same
    layer (Lee et al., ICLR 2021)."""
    masks = exact_cut([_lamp_scores(weight) for weight in weights], keep)
    return [int(mask.sum()) for mask in masks]


ALLOCATION_RULES: dict[str, Allocation] = {
    "global": global_magnitude,
    "uniform": uniform,
    "erk": erk,
    "lamp": lamp,
}


def theta_for(weights: Sequence[Tensor], counts: Sequence[int]) -> list[float]:
    """The theta whose global cut (see `scaled_magnitudes`) keeps about ``counts[l]`` weights of layer l.

    It puts the ``counts[l]``-th largest magnitude of every layer at one common score. The mean over the
    layers is 0, since adding a constant to theta changes nothing. Ties make the counts approximate.
    """
    logs = []
    for weight, count in zip(weights, counts, strict=True):
        magnitudes = weight.detach().reshape(-1).abs().float()
        threshold = float(magnitudes.kthvalue(magnitudes.numel() - count + 1).values)
        logs.append(-math.log(max(threshold, torch.finfo(torch.float32).tiny)))
    mean = sum(logs) / len(logs)
    return [value - mean for value in logs]


def _lamp_scores(weight: Tensor) -> Tensor:
    squares = weight.detach().reshape(-1).double().square()
    ordered, order = squares.sort(stable=True)
    tail = ordered.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = ordered / tail.clamp(min=torch.finfo(torch.float64).tiny)
    return scores.reshape(weight.shape)


def _fill(factors: Sequence[float], sizes: Sequence[int], keep: int) -> list[int]:
    """Counts proportional to ``factor * size``, at least 1, at most ``size``, adding up to ``keep``."""
    full: set[int] = set()
    while True:
        free = [layer for layer in range(len(sizes)) if layer not in full]
        rest = keep - sum(sizes[layer] for layer in full)
        share = sum(factors[layer] * sizes[layer] for layer in free)
        overflow = [layer for layer in free if rest * factors[layer] >= share] if share else []
        if not overflow:
            break
        full.update(overflow)
    exact = [
        float(size) if layer in full else rest * factors[layer] * size / share
        for layer, size in enumerate(sizes)
    ]
    counts = [max(1, min(size, math.floor(value))) for size, value in zip(sizes, exact, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda layer: counts[layer] - exact[layer])
    while sum(counts) != keep:
        step = 1 if sum(counts) < keep else -1
        order = by_remainder if step > 0 else by_remainder[::-1]
        for layer in order:
            if sum(counts) != keep and 1 <= counts[layer] + step <= sizes[layer]:
                counts[layer] += step
    return counts
