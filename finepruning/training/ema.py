"""A running mean of the weights over the steps of a phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of everything in a module's state dict that is a float.

    The decay starts low, ``min(decay, (1 + n) / (10 + n))`` after n updates, so that the first steps of a
    phase are forgotten soon. With fixed masks, zeros stay zeros.

    Attributes:
        tensors: the average, by name in the state dict. updates: how many there were.
    """

    def __init__(
        self, module: nn.Module, decay: float, tensors: Mapping[str, Tensor] | None = None, updates: int = 0
    ) -> None:
        """Start from the module's weights, or go on with ``tensors`` after ``updates`` updates."""
        self._module = module
        self._decay = decay
        state = module.state_dict()
        self.updates = updates
        self.tensors = {
            name: value.clone() if tensors is None else torch.empty_like(value).copy_(tensors[name])
            for name, value in state.items()
            if value.is_floating_point()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights the module has now."""
        self.updates += 1
        decay = min(self._decay, (1.0 + self.updates) / (10.0 + self.updates))
        state = self._module.state_dict()
        for name, mean in self.tensors.items():
            mean.lerp_(state[name], 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module has the mean weights."""
        saved = {name: value.clone() for name, value in self._module.state_dict().items()}
        self.apply()
        try:
            yield
        finally:
            self._module.load_state_dict(saved)

    def apply(self) -> None:
        """Give the module the mean weights."""
        self._module.load_state_dict(self.tensors, strict=False)
