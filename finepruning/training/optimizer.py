"""The optimizer of a phase, and what it remembers between epochs as plain tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def make_optimizer(
    name: str,
    parameters: Sequence[nn.Parameter],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    remembered: Mapping[str, Tensor],
) -> torch.optim.Optimizer:
    """ "sgd" or "adam" (AdamW) over ``parameters``, in the state that `remembered_by` gave.

    Args:
        lr: before the first step sets it. momentum: of "sgd". weight_decay: L2 factor.
        remembered: empty for a fresh optimizer.
    """
    optimizer: torch.optim.Optimizer
    if name == "adam":
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    else:
        optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    for key, value in remembered.items():
        index, entry = key.split(".")
        parameter = parameters[int(index)]
        like = parameter if value.dim() else value
        optimizer.state[parameter][entry] = torch.empty_like(like).copy_(value)
    return optimizer


def remembered_by(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers, as ``"index.name"`` of the parameter and the tensor."""
    parameters = optimizer.param_groups[0]["params"]
    return {
        f"{index}.{name}": value
        for index, parameter in enumerate(parameters)
        for name, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }
