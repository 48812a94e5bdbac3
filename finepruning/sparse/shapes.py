"""Shapes of every value of a graph, computed without running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from finepruning.errors import ModelFileError
from finepruning.sparse import aten
from finepruning.sparse.csr import CSR
from finepruning.sparse.graph import Graph, Node, product, references, resolve, short

MAX_ELEMENTS_PER_IMAGE = 1 << 28  # of one value: 1 GiB of float32

Shape = tuple[int, ...]
Stored = CSR | Tensor


class ShapeError(ModelFileError):
    """An operation cannot take inputs of these shapes."""


def infer(
    graph: Graph, tensors: Mapping[str, Stored], batch: int, dtype: torch.dtype = torch.float32
) -> dict[str, tuple[Shape, torch.dtype]]:
    """Shape and dtype of the graph's input and of every node's value, for this batch.

    Raises:
        ShapeError: naming the node and why its inputs do not fit.
    """
    known: dict[str, tuple[Shape, torch.dtype]] = {graph.input: ((batch, *graph.input_shape), dtype)}
    limit = MAX_ELEMENTS_PER_IMAGE * batch
    for node in graph.nodes:
        shapes = [known[name][0] for name in node.inputs]
        dtypes = [known[name][1] for name in node.inputs]
        try:
            if node.op == "aten":
                shape, result = _aten(node, known, tensors, batch)
            else:
                if any(not kind.is_floating_point for kind in dtypes) and node.op not in ("view", "concat"):
                    raise ShapeError(f"takes floating-point values, not {dtypes}")
                shape = _RULES[node.op](node, shapes, tensors, batch)
                result = dtypes[0]
        except ShapeError as error:
            raise ShapeError(f"config.json: node {short(node.name)} ({node.op}): {error}") from None
        if any(extent < 1 for extent in shape):
            raise ShapeError(
                f"config.json: node {short(node.name)} ({node.op}): its result has shape {shape}"
            )
        if product(shape) > limit:
            raise ShapeError(
                f"config.json: node {short(node.name)} ({node.op}): its result of shape {short(shape)} has "
                f"more than {MAX_ELEMENTS_PER_IMAGE} elements an image"
            )
        known[node.name] = (shape, result)
    return known


def _tensor_shape(tensors: Mapping[str, Stored], name: str) -> Shape:
    return tuple(tensors[name].shape)


def _check_bias(node: Node, tensors: Mapping[str, Stored], rows: int) -> None:
    if node.bias is not None and _tensor_shape(tensors, node.bias) != (rows,):
        raise ShapeError(f"bias must have shape ({rows},), not {short(_tensor_shape(tensors, node.bias))}")


def _conv2d(node: Node, shapes: Sequence[Shape], tensors: Mapping[str, Stored], batch: int) -> Shape:
    x, weight = shapes[0], _tensor_shape(tensors, str(node.weight))
    groups = node.attrs["groups"]
    if len(x) != 4 or len(weight) != 4:
        raise ShapeError(f"takes a value and a weight of 4 dimensions, not {short(x)} and {short(weight)}")
    if weight[0] % groups or x[1] != weight[1] * groups:
        raise ShapeError(
            f"weight {short(weight)} with {groups} groups does not fit an input of {x[1]} channels"
        )
    _check_bias(node, tensors, weight[0])
    attrs = node.attrs
    size = tuple(
        (x[2 + i] + 2 * attrs["padding"][i] - attrs["dilation"][i] * (weight[2 + i] - 1) - 1)
        // attrs["stride"][i]
        + 1
        for i in range(2)
    )
    return (x[0], weight[0], *size)


def _linear(node: Node, shapes: Sequence[Shape], tensors: Mapping[str, Stored], batch: int) -> Shape:
    x, weight = shapes[0], _tensor_shape(tensors, str(node.weight))
    if len(weight) != 2 or not x or x[-1] != weight[1]:
        raise ShapeError(f"weight {short(weight)} does not fit an input of shape {short(x)}")
    _check_bias(node, tensors, weight[0])
    return (*x[:-1], weight[0])


def pooled(extent: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Length of a pooled dimension, as PyTorch defines it."""
    span = extent + 2 * padding - dilation * (kernel - 1) - 1
    length = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (length - 1) * stride >= extent + padding:  # the last window must start inside
        length -= 1
    return length


def _pool2d(node: Node, shapes: Sequence[Shape], tensors: Mapping[str, Stored], batch: int) -> Shape:
    x, attrs = shapes[0], node.attrs
    if len(x) != 4:
        raise ShapeError(f"takes a value of 4 dimensions, not {short(x)}")
    if any(2 * pad > kernel for pad, kernel in zip(attrs["padding"], attrs["kernel"], strict=True)):
        raise ShapeError(f"padding {attrs['padding']} exceeds half of the kernel {attrs['kernel']}")
    dilation = attrs.get("dilation", (1, 1))
    size = tuple(
        pooled(
            x[2 + i],
            attrs["kernel"][i],
            attrs["stride"][i],
            attrs["padding"][i],
            dilation[i],
            attrs["ceil_mode"],
        )
        for i in range(2)
    )
    return (x[0], x[1], *size)


def _adaptive(node: Node, shapes: Sequence[Shape], tensors: Mapping[str, Stored], batch: int) -> Shape:
    if len(shapes[0]) != 4:
        raise ShapeError(f"takes a value of 4 dimensions, not {short(shapes[0])}")
    return (*shapes[0][:2], *node.attrs["size"])


def _same(node: Node, shapes: Sequence[Shape], tensors: Mapping[str, Stored], batch: int) -> Shape:
    return shapes[0]


def _broadcast(node: Node, shapes: Sequence[Shape], tensors: Mapping[str, Stored], batch: int) -> Shape:
    try:
        return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ShapeError(f"shapes {short(shapes)} do not broadcast") from None


def _concat(node: Node, shapes: Sequence[Shape], tensors: Mapping[str, Stored], batch: int) -> Shape:
    first, dim = shapes[0], node.attrs["dim"]
    if not -len(first) <= dim < len(first):
        raise ShapeError(f"dim {dim} is outside a value of shape {short(first)}")
    dim %= len(first)
    for other in shapes:
        if len(other) != len(first) or other[:dim] + other[dim + 1 :] != first[:dim] + first[dim + 1 :]:
            raise ShapeError(f"shapes {short(first)} and {short(other)} differ outside dimension {dim}")
    return (*first[:dim], sum(other[dim] for other in shapes), *first[dim + 1 :])


def _view(node: Node, shapes: Sequence[Shape], tensors: Mapping[str, Stored], batch: int) -> Shape:
    shape = [resolve(extent, batch) for extent in node.attrs["shape"]]
    total = product(shapes[0])
    rest = product([extent for extent in shape if extent != -1])
    if shape.count(-1) == 1 and rest > 0:
        shape[shape.index(-1)] = total // rest
    if any(extent < 1 for extent in shape) or product(shape) != total:
        raise ShapeError(f"{short(shapes[0])} cannot be viewed as {short(shape)}")
    return tuple(shape)


def _aten(
    node: Node, known: Mapping[str, tuple[Shape, torch.dtype]], tensors: Mapping[str, Stored], batch: int
) -> tuple[Shape, torch.dtype]:
    """Let PyTorch infer the result on the meta device, which allocates nothing."""
    values = {name: torch.empty(known[name][0], dtype=known[name][1], device="meta") for name in node.inputs}
    constants: dict[str, Tensor] = {}
    float_type = next((known[name][1] for name in node.inputs if known[name][1].is_floating_point), None)
    for name in references(node.attrs, "tensor"):
        stored = tensors[name]
        if isinstance(stored, CSR):
            raise ShapeError(f"tensor {short(name)} must be stored dense")
        dtype = float_type if float_type is not None and stored.dtype.is_floating_point else stored.dtype
        constants[name] = torch.empty(stored.shape, dtype=dtype, device="meta")
    attrs = aten.bind(node.attrs, batch)
    try:
        result = aten.call(attrs, values, constants, "meta")
    except Exception as error:  # PyTorch raises many types here; all mean that the arguments do not fit
        reason = str(error.__cause__ or error).strip().splitlines()[0][:200]
        raise ShapeError(f"{node.attrs['target']}: {reason}") from None
    return tuple(result.shape), result.dtype


_RULES = {
    "conv2d": _conv2d,
    "linear": _linear,
    "max_pool2d": _pool2d,
    "avg_pool2d": _pool2d,
    "adaptive_avg_pool2d": _adaptive,
    "activation": _same,
    "add": _broadcast,
    "mul": _broadcast,
    "concat": _concat,
    "view": _view,
}
