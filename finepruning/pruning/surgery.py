"""Masks that keep adapting while the network trains (Dynamic Network Surgery, Guo et al., NeurIPS 2016)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from finepruning.pruning.budget import Keep, kept
from finepruning.pruning.cut import exact_cut, scaled_magnitudes

DROP_BELOW = 0.9
SPLICE_ABOVE = 1.1


class Surgery:
    """Prunes a network in place and keeps the weights behind the masks.

    The network's parameters hold the masked weights, so that anything that reads it sees the pruned
    network. Gradients of a masked convolution exist for dropped weights too; inside `dense` the parameters
    hold all weights, and an optimizer step there updates every one of them (straight-through estimator).

    Layer l has the threshold ``t_l = c * exp(-theta_l)``. An update drops a kept weight below ``0.9 t_l``
    and re-admits a dropped one above ``1.1 t_l``; ``c`` is set each time so that exactly ``keep`` weights
    remain.

    Attributes:
        masks: boolean, one a layer, in the order of ``layers``.
        weights: the weights behind the masks.
        sensitivity: factors on the magnitudes, one tensor a layer; None for plain magnitudes.
        frozen: dropped weights stay zero: neither optimizer steps nor later cuts bring them back.
    """

    def __init__(self, layers: Mapping[str, nn.Parameter], weights: Sequence[Tensor] | None = None) -> None:
        """Start with every weight kept; ``weights`` are those behind the masks if they differ from the
        parameters."""
        self._parameters = list(layers.values())
        source = self._parameters if weights is None else weights
        self.weights = [weight.detach().clone(memory_format=torch.preserve_format) for weight in source]
        self.masks = [torch.ones_like(weight, dtype=torch.bool) for weight in self.weights]
        self.sensitivity: list[Tensor] | None = None
        self.frozen = False

    @property
    def kept(self) -> int:
        """Number of weights that the masks keep."""
        return sum(int(mask.sum()) for mask in self.masks)

    @property
    def mask_of(self) -> dict[nn.Parameter, Tensor]:
        """The mask of every pruned parameter."""
        return dict(zip(self._parameters, self.masks, strict=True))

    def saliency(self) -> list[Tensor]:
        """What the layers' weights are worth before theta: magnitude times sensitivity."""
        magnitudes = [weight.abs() for weight in self.weights]
        if self.sensitivity is None:
            return magnitudes
        return [size * factor for size, factor in zip(magnitudes, self.sensitivity, strict=True)]

    def cut(self, theta: Sequence[float], keep: Keep, first: Sequence[Tensor] | None = None) -> None:
        """Choose the masks anew, without hysteresis, so that exactly ``keep`` weights remain.

        Weights of the masks ``first`` go before all others: the new masks lie within them or hold them.
        """
        scores = scaled_magnitudes(self.saliency(), theta)
        if first is not None:
            _put_first(scores, first)
        self.set_masks(exact_cut(scores, kept(keep, scores)))

    def set_masks(self, masks: Sequence[Tensor]) -> None:
        """Use these masks and apply them to the network."""
        self.masks = [mask.clone() for mask in masks]
        self._apply()

    def update(self, theta: Sequence[float], keep: Keep) -> int:
        """Update the masks with hysteresis; exactly ``keep`` weights remain.

        Returns:
            Number of weights spliced back.
        """
        scores = scaled_magnitudes(self.saliency(), theta)
        for score, mask in zip(scores, self.masks, strict=True):
            score.mul_(torch.where(mask, 1 / DROP_BELOW, 1 / SPLICE_ABOVE))
        before = self.masks
        self.set_masks(exact_cut(scores, kept(keep, scores)))
        return sum(int((new & ~old).sum()) for new, old in zip(self.masks, before, strict=True))

    def freeze(self) -> None:
        """Fix the masks from here on, and set dropped weights to zero."""
        self.frozen = True
        for weight, mask in zip(self.weights, self.masks, strict=True):
            weight.mul_(mask)

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Parameters hold all weights inside; what they are at the end is kept and masked again."""
        with torch.no_grad():
            for parameter, weight in zip(self._parameters, self.weights, strict=True):
                parameter.copy_(weight)
        yield
        with torch.no_grad():
            for parameter, weight in zip(self._parameters, self.weights, strict=True):
                weight.copy_(parameter)
        if self.frozen:
            self.freeze()
        self._apply()

    def _apply(self) -> None:
        with torch.no_grad():
            for parameter, weight, mask in zip(self._parameters, self.weights, self.masks, strict=True):
                torch.mul(weight, mask, out=parameter.data)


def _put_first(scores: Sequence[Tensor], first: Sequence[Tensor]) -> None:
    """Change the scores in place: each inside ``first`` comes above each outside, their orders kept."""
    inside = torch.cat([score[mask] for score, mask in zip(scores, first, strict=True)])
    outside = torch.cat([score[~mask] for score, mask in zip(scores, first, strict=True)])
    positive = inside[inside > 0]
    lowest = float(positive.min()) if positive.numel() else 1.0
    highest = float(outside.max()) if outside.numel() else 0.0
    factor = 0.5 * lowest / highest if highest > 0 else 0.0
    for score, mask in zip(scores, first, strict=True):
        score.copy_(torch.where(mask, score.clamp(min=0.75 * lowest), score * factor))


def update_probability(step: int, gamma: float, power: float) -> float:
    """Chance that the masks are updated after ``step`` steps of a round."""
    return float((1.0 + gamma * step) ** -power)
