"""One function for each ATen operation that has an operation of ours; the rest stays ATen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from finepruning.engine.builder import Builder, Constant, Value, values_in


@dataclass(frozen=True)
class Call:
    """One traced call of an ATen operation, in-place variants already replaced by functional ones.

    Attributes:
        op: name of the operation, such as "conv2d". builder: where nodes go.
        name: proposed name of the node. layer: path of the calling module.
        arguments: all arguments by schema name, defaults included; tensors as `Value` or `Constant`.
        input_shape: of the first tensor argument, extents int or `Batch`; None if there is none.
        input_dtype: its element type.
        shapes: shapes of the results. dtypes: element types of the results.
    """

    op: str
    builder: Builder
    name: str
    layer: str
    arguments: dict[str, Any]
    input_shape: tuple[Any, ...] | None
    input_dtype: torch.dtype | None
    shapes: list[tuple[Any, ...]]
    dtypes: list[torch.dtype]

    def emit(self, op: str, inputs: list[Value], name: str | None = None, **attrs: Any) -> Value:
        return self.builder.emit(name or self.name, op, inputs, attrs=attrs)

    def aten(self, target: str, *args: Any, item: int | None = None, **kwargs: Any) -> Value:
        attrs = {"target": target, "args": list(args), "kwargs": kwargs, "item": item}
        return self.builder.emit(self.name, "aten", list(values_in([list(args), kwargs])), attrs=attrs)


Result = Value | list[Value] | None  # None: keep the ATen operation
LOWERINGS: dict[str, Callable[[Call], Result]] = {}


def _lowers(*names: str) -> Callable[[Callable[[Call], Result]], Callable[[Call], Result]]:
    def register(function: Callable[[Call], Result]) -> Callable[[Call], Result]:
        for name in names:
            LOWERINGS[name] = function
        return function

    return register


def _pair(value: Any) -> list[int]:
    items = [value] if isinstance(value, int) else list(value)
    return items * 2 if len(items) == 1 else items


def _is_image(call: Call) -> bool:
    return call.input_shape is not None and len(call.input_shape) == 4


@_lowers("conv2d", "convolution")
def _conv2d(call: Call) -> Result:
    get = call.arguments
    x, weight, bias = get["input"], get["weight"], get["bias"]
    if not (isinstance(x, Value) and isinstance(weight, Constant) and _is_image(call)):
        return None
    if get.get("transposed") or weight.tensor.dim() != 4 or not isinstance(bias, Constant | None):
        return None
    stride, dilation = _pair(get["stride"]), _pair(get["dilation"])
    if get["padding"] == "valid":
        padding = [0, 0]
    elif get["padding"] == "same":
        before, after = [], []
        for size, gap in zip(weight.tensor.shape[2:], dilation, strict=True):
            before.append(gap * (size - 1) // 2)
            after.append(gap * (size - 1) - before[-1])
        padding = before
        if before != after:  # PyTorch pads even kernels more at the end
            sides = [before[1], after[1], before[0], after[0]]
            x = call.aten("aten.constant_pad_nd.default", x, sides, 0)
            padding = [0, 0]
    else:
        padding = _pair(get["padding"])
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": get["groups"]}
    return call.builder.emit(call.layer or call.name, "conv2d", [x], attrs=attrs, weight=weight, bias=bias)


@_lowers("linear")
def _linear(call: Call) -> Result:
    x, weight, bias = (call.arguments[key] for key in ("input", "weight", "bias"))
    if not (isinstance(x, Value) and isinstance(weight, Constant) and isinstance(bias, Constant | None)):
        return None
    if weight.tensor.dim() != 2:
        return None
    return call.builder.emit(call.layer or call.name, "linear", [x], weight=weight, bias=bias)


@_lowers("batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(call: Call) -> Result:
    get = call.arguments
    statistics = (get["running_mean"], get["running_var"])
    if not all(isinstance(item, Constant) for item in statistics) or get.get("training"):
        return None
    if not all(isinstance(get[key], Constant | None) for key in ("weight", "bias")):
        return None
    assert call.input_shape is not None
    attrs = {
        "mean": statistics[0].tensor,
        "variance": statistics[1].tensor,
        "eps": get["eps"],
        "rank": len(call.input_shape),
    }
    value = call.builder.emit(
        call.name, "batch_norm", [get["input"]], attrs=attrs, weight=get["weight"], bias=get["bias"]
    )
    return value if len(call.shapes) == 1 else [value] * len(call.shapes)


@_lowers("max_pool2d")
def _max_pool2d(call: Call) -> Result:
    if not _is_image(call):
        return None
    get = call.arguments
    kernel = _pair(get["kernel_size"])
    return call.emit(
        "max_pool2d",
        [get["self"]],
        kernel=kernel,
        stride=_pair(get["stride"]) if get["stride"] else kernel,
        padding=_pair(get["padding"]),
        dilation=_pair(get["dilation"]),
        ceil_mode=get["ceil_mode"],
    )


@_lowers("avg_pool2d")
def _avg_pool2d(call: Call) -> Result:
    if not _is_image(call):
        return None
    get = call.arguments
    kernel = _pair(get["kernel_size"])
    return call.emit(
        "avg_pool2d",
        [get["self"]],
        kernel=kernel,
        stride=_pair(get["stride"]) if get["stride"] else kernel,
        padding=_pair(get["padding"]),
        ceil_mode=get["ceil_mode"],
        count_include_pad=get["count_include_pad"],
        divisor_override=get["divisor_override"],
    )


@_lowers("adaptive_avg_pool2d")
def _adaptive_avg_pool2d(call: Call) -> Result:
    if not _is_image(call):
        return None
    return call.emit("adaptive_avg_pool2d", [call.arguments["self"]], size=list(call.shapes[0][2:]))


@_lowers("mean")
def _mean(call: Call) -> Result:
    """A mean over both dimensions of a map is a global average pool."""
    get = call.arguments
    if not _is_image(call) or call.dtypes[0] is not torch.float32 or not isinstance(get.get("dim"), list):
        return None
    if sorted(dim % 4 for dim in get["dim"]) != [2, 3]:
        return None
    pooled = call.emit("adaptive_avg_pool2d", [get["self"]], size=[1, 1])
    return pooled if get["keepdim"] else call.emit("view", [pooled], shape=list(call.shapes[0]))


@_lowers("relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid", "gelu")
def _activation(call: Call) -> Result:
    if call.arguments.get("approximate", "none") != "none" or call.dtypes[0] is not torch.float32:
        return None
    return call.emit("activation", [call.arguments["self"]], kind=call.op)


@_lowers("hardtanh", "clamp", "clamp_min")
def _clamp(call: Call) -> Result:
    get = call.arguments
    bounds = (get.get("min_val", get.get("min")), get.get("max_val", get.get("max")))
    if bounds not in ((0, 6), (0, None)) or call.dtypes[0] is not torch.float32:
        return None
    return call.emit("activation", [get["self"]], kind="relu" if bounds[1] is None else "relu6")


@_lowers("add", "mul")
def _binary(call: Call) -> Result:
    left, right = call.arguments["self"], call.arguments["other"]
    if not (isinstance(left, Value) and isinstance(right, Value)) or call.arguments.get("alpha", 1) != 1:
        return None
    if call.dtypes[0] is not torch.float32:
        return None
    return call.emit(call.op, [left, right])


@_lowers("cat", "concat", "concatenate")
def _concat(call: Call) -> Result:
    tensors = call.arguments["tensors"]
    if not all(isinstance(item, Value) for item in tensors):
        return None
    return call.emit("concat", list(tensors), dim=call.arguments["dim"])


@_lowers(
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as", "reshape_as"
)
def _view(call: Call) -> Result:
    value = call.arguments["self"]
    if call.shapes[0] == call.input_shape:
        return value  # type: ignore[no-any-return]
    return call.emit("view", [value], shape=list(call.shapes[0]))


@_lowers(
    "contiguous", "clone", "detach", "alias", "lift_fresh", "lift_fresh_copy", "positive", "identity",
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout",
)  # fmt: skip
def _same(call: Call) -> Result:
    if call.arguments.get("train"):
        return None
    value: Value = call.arguments["self" if "self" in call.arguments else "input"]
    return [value] * len(call.shapes) if len(call.shapes) > 1 else value


@_lowers("to", "_to_copy", "type_as", "float", "expand", "expand_as")
def _same_if_equal(call: Call) -> Result:
    value = call.arguments["self"]
    same = (
        isinstance(value, Value) and call.input_shape == call.shapes[0] and call.dtypes[0] is call.input_dtype
    )
    return value if same else None


@_lowers("slice")
def _slice(call: Call) -> Result:
    value: Value = call.arguments["self"]
    return value if call.input_shape == call.shapes[0] else None


@_lowers("pad", "constant_pad_nd")
def _pad(call: Call) -> Result:
    value: Value = call.arguments["self"]
    return value if not any(call.arguments["pad"]) else None


@_lowers("chunk", "split", "split_with_sizes", "tensor_split")
def _split(call: Call) -> Result:
    value, dim = call.arguments["self"], call.arguments["dim"]
    assert call.input_shape is not None
    dim %= len(call.input_shape)
    parts: list[Value] = []
    start = 0
    for shape in call.shapes:
        if not isinstance(shape[dim], int):
            return None
        parts.append(call.aten("aten.slice.Tensor", value, dim, start, start + shape[dim], 1))
        start += shape[dim]
    return parts


@_lowers("unbind")
def _unbind(call: Call) -> Result:
    value, dim = call.arguments["self"], call.arguments["dim"]
    return [call.aten("aten.select.int", value, dim, index) for index in range(len(call.shapes))]
