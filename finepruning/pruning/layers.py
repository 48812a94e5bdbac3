"""Which weights of a network can be pruned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import nn

from finepruning.errors import ArgumentError


def prunable_layers(module: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of every convolution (2-D, any groups) and fully connected layer, by layer name.

    The first convolution and the classifier are included. A weight shared by several layers appears
    once. Order is that of ``module.named_modules()``.

    Raises:
        ArgumentError: the network has no such layer.
    """
    layers: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, child in module.named_modules():
        if isinstance(child, (nn.Conv2d, nn.Linear)) and id(child.weight) not in seen:
            seen.add(id(child.weight))
            layers[name] = cast(nn.Parameter, child.weight)
    if not layers:
        raise ArgumentError("the network has no Conv2d or Linear layer, so there is nothing to prune")
    return layers


def weights_to_keep(layers: Mapping[str, nn.Parameter], density: float) -> int:
    """Number of weights that make up ``density`` of all prunable weights.

    Raises:
        ArgumentError: that is fewer than one weight a layer.
    """
    total = sum(weight.numel() for weight in layers.values())
    keep = round(density * total)
    if keep < len(layers):
        raise ArgumentError(
            f"target_density {density:g} keeps {keep} of {total} weights, fewer than one in each of the "
            f"{len(layers)} layers; the lowest possible here is {len(layers) / total:.2g}"
        )
    return keep
