"""Fine-tuning that remembers where it started."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class StartingPoint:
    """The penalty ``factor / 2 * |w - w0|^2`` towards the weights w0 of the beginning (L2-SP; Li, Grandvalet
    and Davoine, ICML 2018). It stands beside weight decay, which pulls towards 0.
    """

    def __init__(self, module: nn.Module, factor: float) -> None:
        """w0 are the weights that the module has now."""
        self._factor = factor
        self._start = {
            parameter: parameter.detach().clone(memory_format=torch.preserve_format)
            for parameter in module.parameters()
        }

    @torch.no_grad()
    def add_gradients(self, masks: Mapping[nn.Parameter, Tensor]) -> None:
        """Add the penalty's gradient to every gradient there is; masked weights feel none."""
        for parameter, start in self._start.items():
            if parameter.grad is None:
                continue
            pull = (parameter - start) * self._factor
            if parameter in masks:
                pull *= masks[parameter]
            parameter.grad += pull
