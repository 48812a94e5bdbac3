"""Dropout of a network that is being pruned."""

from __future__ import annotations

from torch import nn


def set_dropout(module: nn.Module, probability: float) -> None:
    """Set the probability of every dropout layer."""
    for child in module.modules():
        if isinstance(child, nn.modules.dropout._DropoutNd):
            child.p = probability
