"""Folding of batch normalisation into the weights before it."""

from __future__ import annotations

import torch
from torch import Tensor

from finepruning.engine.builder import Builder, Constant, Emitted

# A norm that multiplies by more than this stays a step of its own. Folding rounds every weight on its own,
# by up to 2^-24 of its value, and these errors leave the layer multiplied by the gain. The norm itself
# multiplies the whole row by one number, whose rounding cancels between the value and the mean. Where
# channels hardly vary, gains of hundreds follow each other and turn the difference into signal.
MAX_GAIN = 10.0


def fold_norms(builder: Builder) -> None:
    """Replace every "batch_norm" node: ``y = x * scale + shift`` for each channel (dimension 1).

    After a convolution or linear layer whose result nobody else reads, the layer's rows are scaled (zeros
    stay zeros) and the norm disappears, unless that would lose accuracy (`MAX_GAIN`). Elsewhere it becomes a
    depthwise 1x1 convolution, or ATen operations if the value is no image. A layer that is called twice
    gets a folded copy for each call.
    """
    uses = builder.uses()
    for node in list(builder.nodes.values()):
        if node.op != "batch_norm":
            continue
        producer = builder.nodes.get(node.inputs[0].name)
        if producer is None or uses[producer.name] != 1 or not _fits(producer, node):
            _keep(builder, node, None)
        elif _gain(producer, node) > MAX_GAIN:
            _keep(builder, node, producer)
        else:
            _fold(producer, node)
            builder.replace(node.name, producer.name)
            uses[producer.name] = uses[node.name]


def _gain(layer: Emitted, norm: Emitted) -> float:
    """Largest factor by which a channel of layer and norm amplifies independent errors of its inputs.

    Where the norm divides by no small deviation the factor is the network's own, so it counts as the norm's.
    """
    assert layer.weight is not None
    rows = layer.weight.tensor.detach().double().flatten(1).norm(dim=1)
    return float((_scale(norm).abs() * rows.clamp(max=1.0)).max())


def _scale(norm: Emitted) -> Tensor:
    """``[channels]`` float64: what a norm multiplies by."""
    scale: Tensor = (norm.attrs["variance"].detach().double() + norm.attrs["eps"]).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.tensor.detach().double()
    return scale


def _fits(producer: Emitted, norm: Emitted) -> bool:
    """Whether the norm's channels are the rows of the producer's weight."""
    rank = norm.attrs["rank"]
    return (producer.op == "conv2d" and rank == 4) or (producer.op == "linear" and rank == 2)


def _fold(layer: Emitted, norm: Emitted) -> None:
    assert layer.weight is not None
    scale = _scale(norm)
    weight = layer.weight.tensor.detach()
    shift = _center(layer, norm) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.tensor.detach().double()
    scaled = weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
    layer.weight = Constant(scaled.float(), layer.weight.name)
    layer.bias = Constant(shift.float(), layer.bias.name if layer.bias is not None else f"{layer.name}.bias")


def _center(layer: Emitted | None, norm: Emitted) -> Tensor:
    """``[channels]`` float64: the layer's bias less the norm's mean."""
    center: Tensor = -norm.attrs["mean"].detach().double()
    if layer is not None and layer.bias is not None:
        center = center + layer.bias.tensor.detach().double()
    return center


def _keep(builder: Builder, node: Emitted, layer: Emitted | None) -> None:
    """Turn the norm into a step of its own, ``(x - mean) * scale + bias``; ``layer`` subtracts the mean."""
    scale = _scale(node).float()
    shift = torch.zeros_like(scale, dtype=torch.float64)
    if layer is None:
        shift = _center(None, node) * scale.double()
    else:
        center = _center(layer, node).float()
        layer.bias = Constant(center, layer.bias.name if layer.bias is not None else f"{layer.name}.bias")
    if node.bias is not None:
        shift = shift + node.bias.tensor.detach().double()
    shift = shift.float()
    if node.attrs["rank"] == 4:
        node.op, node.attrs = (
            "conv2d",
            {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": scale.numel()},
        )
        node.weight, node.bias = Constant(scale.reshape(-1, 1, 1, 1)), Constant(shift)
        return
    shape = (-1, *[1] * (node.attrs["rank"] - 2))
    scaled = builder.emit_before(
        node.name,
        f"{node.name}.scale",
        "aten",
        node.inputs,
        attrs=_call("aten.mul.Tensor", [node.inputs[0], Constant(scale.reshape(shape))]),
    )
    node.op, node.inputs, node.weight, node.bias = "aten", [scaled], None, None
    node.attrs = _call("aten.add.Tensor", [scaled, Constant(shift.reshape(shape))])


def _call(target: str, args: list[object]) -> dict[str, object]:
    return {"target": target, "args": args, "kwargs": {}, "item": None}
