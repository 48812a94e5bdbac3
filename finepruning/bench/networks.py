"""Networks pruned on the spot, with random weights, for trying the engine without a run."""

from __future__ import annotations

import torch
from torch import nn

from finepruning import models
from finepruning.engine import SparseModel
from finepruning.errors import ArgumentError

FIRST_CONVOLUTION_DENSITY = 0.5


def check_request(name: str, density: float) -> None:
    """Raise ArgumentError unless `prune_random` can be asked for this."""
    if not 0.0 < density <= 1.0:
        raise ArgumentError(f"--density: {density} must be above 0 and at most 1")
    models.resolve(name)


def prune_random(name: str, density: float, *, seed: int = 0, classes: int = 1000) -> SparseModel:
    """A network by name with random weights, pruned by magnitude to one density in every layer.

    The first convolution keeps half: it holds few weights and sees the whole image, so that real pruning
    leaves it denser as well.

    Raises:
        ArgumentError: an unknown name, or a density outside (0, 1].
    """
    check_request(name, density)
    network = models.create(name, classes, "none", seed)
    prune_uniform(network.module, density)
    size = network.image_size
    module = network.module.eval()
    provenance = {"model": network.name, "weights": "random", "density": density, "seed": seed}
    return SparseModel.from_dense(module, torch.zeros(1, 3, size, size), provenance=provenance)


def prune_uniform(module: nn.Module, density: float, first: float = FIRST_CONVOLUTION_DENSITY) -> None:
    """Zero the smallest weights of every convolution and fully connected layer, in place.

    Args:
        module: any network. density: kept share of each layer; first: least share of the first.
    """
    layers = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for index, layer in enumerate(layers):
        weight = layer.weight
        share = max(density, first) if index == 0 else density
        drop = weight.numel() - max(1, round(share * weight.numel()))
        if drop > 0:
            smallest = weight.detach().abs().flatten().topk(drop, largest=False, sorted=False).indices
            weight.data.flatten()[smallest] = 0.0
