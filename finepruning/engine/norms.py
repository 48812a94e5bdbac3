"""Folding of batch normalisation into the weights before it."""

from __future__ import annotations

from torch import Tensor

from finepruning.engine.builder import Builder, Constant, Emitted


def fold_norms(builder: Builder) -> None:
    """Replace every "batch_norm" node: ``y = x * scale + shift`` for each channel (dimension 1).

    After a convolution or linear layer whose result nobody else reads, the layer's rows are scaled (zeros
    stay zeros) and the norm disappears. Elsewhere it becomes a depthwise 1x1 convolution, or an ATen
    operation if the value is no image. A layer that is called twice gets a folded copy for each call.
    """
    uses = builder.uses()
    for node in list(builder.nodes.values()):
        if node.op != "batch_norm":
            continue
        scale, shift = _affine(node)
        producer = builder.nodes.get(node.inputs[0].name)
        if producer is not None and uses[producer.name] == 1 and _fits(producer, node):
            _fold(producer, scale, shift)
            builder.replace(node.name, producer.name)
            uses[producer.name] = uses[node.name]
        elif node.attrs["rank"] == 4:
            node.op, node.attrs = (
                "conv2d",
                {
                    "stride": [1, 1],
                    "padding": [0, 0],
                    "dilation": [1, 1],
                    "groups": scale.numel(),
                },
            )
            node.weight, node.bias = Constant(scale.float().reshape(-1, 1, 1, 1)), Constant(shift.float())
        else:
            shape = (-1, *[1] * (node.attrs["rank"] - 2))
            scaled = builder.emit_before(
                node.name,
                f"{node.name}.scale",
                "aten",
                node.inputs,
                attrs=_call("aten.mul.Tensor", [node.inputs[0], Constant(scale.float().reshape(shape))]),
            )
            node.op, node.inputs = "aten", [scaled]
            node.attrs = _call("aten.add.Tensor", [scaled, Constant(shift.float().reshape(shape))])


def _call(target: str, args: list[object]) -> dict[str, object]:
    return {"target": target, "args": args, "kwargs": {}, "item": None}


def _affine(node: Emitted) -> tuple[Tensor, Tensor]:
    """Scale and shift of a norm in float64, each ``[channels]``."""
    mean, variance = node.attrs["mean"].double(), node.attrs["variance"].double()
    scale = (variance + node.attrs["eps"]).rsqrt()
    if node.weight is not None:
        scale = scale * node.weight.tensor.detach().double()
    shift = -mean * scale
    if node.bias is not None:
        shift = shift + node.bias.tensor.detach().double()
    return scale, shift


def _fits(producer: Emitted, norm: Emitted) -> bool:
    """Whether the norm's channels are the rows of the producer's weight."""
    rank = norm.attrs["rank"]
    return (producer.op == "conv2d" and rank == 4) or (producer.op == "linear" and rank == 2)


def _fold(layer: Emitted, scale: Tensor, shift: Tensor) -> None:
    assert layer.weight is not None
    weight = layer.weight.tensor.detach()
    scaled = weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
    if layer.bias is not None:
        shift = shift + layer.bias.tensor.detach().double() * scale
    layer.weight = Constant(scaled.float(), layer.weight.name)
    layer.bias = Constant(shift.float(), layer.bias.name if layer.bias is not None else f"{layer.name}.bias")
