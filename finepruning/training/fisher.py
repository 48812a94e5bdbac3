"""How much the loss depends on each weight, from its gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finepruning.training.epoch import Recipe


def sensitivities(
    module: nn.Module,
    layers: Mapping[str, nn.Parameter],
    batches: Sequence[tuple[Tensor, Tensor]],
    recipe: Recipe,
) -> list[Tensor]:
    """Root of the diagonal empirical Fisher information of every prunable weight.

    ``|w| * sensitivity`` ranks weights as ``w^2 * Fisher`` does: by the rise of the loss to second order when
    one of them is set to zero (LeCun, Denker and Solla, 1990; Theis et al., 2018). The information is
    estimated from the gradients of whole batches, in eval mode. A weight of a dead unit gets 0.

    Args:
        module: left as it was found. layers: as from `prunable_layers`.

    Returns:
        One float32 tensor a layer, of the layer's shape.
    """
    training = module.training
    module.eval()
    parameters = list(layers.values())
    squares = [torch.zeros_like(parameter) for parameter in parameters]
    for x, y in batches:
        logits = module(x.to(recipe.device, memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), y.to(recipe.device))
        for total, gradient in zip(squares, torch.autograd.grad(loss, parameters), strict=True):
            total.add_(gradient.square())
    module.train(training)
    return [(total / max(1, len(batches))).sqrt() for total in squares]
