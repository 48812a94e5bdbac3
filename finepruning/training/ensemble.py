"""Weight-space ensembling of a fine-tuned network with the one it started from."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

ALPHAS = tuple(step / 10 for step in range(10, -1, -1))
"""Shares of the fine-tuned weights that are tried, the whole first."""


@torch.no_grad()
def ensemble(
    module: nn.Module,
    start: Mapping[str, Tensor],
    masks: Mapping[nn.Parameter, Tensor],
    score: Callable[[], float],
) -> float:
    """Give ``module`` the best ``alpha * fine-tuned + (1 - alpha) * start``.

    This is WiSE-FT (Wortsman et al., CVPR 2022). Everything in the state dict that is a float is mixed,
    statistics of norms included; weights with a mask are mixed where it keeps them, and stay zero elsewhere.

    Args:
        module: has the fine-tuned weights. start: its state dict before training.
        masks: of pruned parameters, boolean.
        score: of the module as it is, lower is better, such as the validation loss.

    Returns:
        The alpha chosen; the largest of equals, so that 1 leaves the module as it was.
    """
    tuned = {name: value.clone() for name, value in module.state_dict().items() if value.is_floating_point()}
    mask_of = {name: masks[weight] for name, weight in module.named_parameters() if weight in masks}

    def give(alpha: float) -> None:
        mixed = dict(tuned)
        if alpha < 1.0:
            mixed = {name: torch.lerp(start[name].to(value), value, alpha) for name, value in tuned.items()}
            for name, mask in mask_of.items():
                mixed[name] *= mask
        module.load_state_dict(mixed, strict=False)

    best, lowest = 1.0, float("inf")
    for alpha in ALPHAS:
        give(alpha)
        found = score()
        if found < lowest:
            best, lowest = alpha, found
    give(best)
    return best
