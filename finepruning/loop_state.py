"""The tensors from which the fine-pruning loop goes on, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from finepruning.pruning import Surgery
from finepruning.training import WeightAverage


@dataclass
class LoopState:
    """What the loop knows in tensors besides the network.

    Attributes:
        surgery: masks and the weights behind them, from the first round on.
        average: of the weights in the final phase, where one is kept.
        optimizer: what the phase's optimizer remembers, see `finepruning.training.remembered_by`.
    """

    surgery: Surgery | None = None
    average: WeightAverage | None = None
    optimizer: dict[str, Tensor] = field(default_factory=dict)


def to_tensors(module: nn.Module, layers: Mapping[str, nn.Parameter], state: LoopState) -> dict[str, Tensor]:
    """Everything by name; a pruned layer's weight is the one behind the mask."""
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    surgery = state.surgery
    if surgery is not None:
        for name, weight, mask in zip(layers, surgery.weights, surgery.masks, strict=True):
            tensors[f"module.{name}.weight"] = weight
            tensors[f"mask.{name}"] = mask
        if surgery.sensitivity is not None:
            for name, factor in zip(layers, surgery.sensitivity, strict=True):
                tensors[f"sensitivity.{name}"] = factor
    if state.average is not None:
        tensors |= {f"average.{name}": value for name, value in state.average.tensors.items()}
    return tensors | {f"momentum.{key}": value for key, value in state.optimizer.items()}


def live_tensors(module: nn.Module, state: LoopState) -> list[Tensor]:
    """The network's own tensors and those of `LoopState` besides the optimizer, to be changed in place."""
    tensors = list(module.state_dict(keep_vars=True).values())
    if state.surgery is not None:
        tensors += [*state.surgery.weights, *state.surgery.masks, *(state.surgery.sensitivity or [])]
    if state.average is not None:
        tensors += state.average.tensors.values()
    return [tensor.data for tensor in tensors]


def from_tensors(
    tensors: Mapping[str, Tensor],
    module: nn.Module,
    layers: Mapping[str, nn.Parameter],
    device: torch.device,
    *,
    ema: float,
    averaged: int,
) -> LoopState:
    """Load the network from `to_tensors` and give the rest.

    Args:
        ema: decay of the average. averaged: updates that went into it.

    Raises:
        RuntimeError: the tensors are of another network.
    """
    module.load_state_dict(dict(_under("module.", tensors)))
    state = LoopState(optimizer=dict(_under("momentum.", tensors)))
    masks = dict(_under("mask.", tensors))
    if masks:
        state.surgery = Surgery(layers)
        state.surgery.set_masks([masks[name].to(device) for name in layers])
        factors = dict(_under("sensitivity.", tensors))
        if factors:
            state.surgery.sensitivity = [factors[name].to(device) for name in layers]
    average = dict(_under("average.", tensors))
    if average:
        state.average = WeightAverage(module, ema, average, averaged)
    return state


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), tensor
