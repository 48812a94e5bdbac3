"""One global cut through the scores of all layers that keeps an exact number of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def exact_cut(scores: Sequence[Tensor], keep: int) -> list[Tensor]:
    """Masks of the ``keep`` highest scores over all layers together, at least one in every layer.

    Args:
        scores: one tensor a layer, any shapes, not NaN, all on one device. Higher is kept first; among
            equal scores the earlier position wins, so that the result is the same on every run.
        keep: from ``len(scores)`` to the number of all weights.

    Returns:
        Boolean masks shaped like the scores, with exactly ``keep`` True entries in all.
    """
    sizes = [score.numel() for score in scores]
    total = sum(sizes)
    if not len(scores) <= keep <= total:
        raise ValueError(f"cannot keep {keep} of {total} weights in {len(scores)} layers")
    flat = torch.cat([score.detach().reshape(-1) for score in scores])
    start = 0
    for size in sizes:
        flat[start + int(flat[start : start + size].argmax())] = torch.inf
        start += size
    cut = flat.kthvalue(total - keep + 1).values
    mask = flat > cut
    ties = (flat == cut).nonzero().squeeze(1)
    mask[ties[: keep - int(mask.sum())]] = True
    return [part.reshape(score.shape) for part, score in zip(torch.split(mask, sizes), scores, strict=True)]


def scaled_magnitudes(weights: Sequence[Tensor], theta: Sequence[float]) -> list[Tensor]:
    """Scores ``|w| * exp(theta_l)``: theta = 0 everywhere is global magnitude pruning."""
    scale = torch.tensor(list(theta), dtype=torch.float64).exp()
    return [
        weight.detach().abs().float() * float(factor)
        for weight, factor in zip(weights, scale.tolist(), strict=True)
    ]
