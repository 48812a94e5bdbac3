"""ATen operations in a graph: which ones a file may name, how their arguments are written, how they run.

Arguments are nested lists of numbers, strings, booleans and null, with these objects for the rest:
``{"value": name}`` a value of the graph, ``{"tensor": name}`` a stored tensor, ``{"batch": [a, b]}`` the
integer ``a * batch + b``, ``{"dtype": "float32"}`` and ``{"float": "-inf"}`` (also "inf" and "nan").
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from finepruning.errors import ModelFileError
from finepruning.sparse.graph import is_int, resolve, short

# Functional operations without side effects, randomness or access to anything but their arguments, whose
# cost is bounded by the sizes of their inputs and output.
_STORABLE = """
abs.default adaptive_avg_pool2d.default adaptive_max_pool1d.default add.Scalar add.Tensor
amax.default amin.default avg_pool2d.default batch_norm.default bmm.default cat.default
clamp.default clamp_max.default clamp_min.default constant_pad_nd.default conv1d.default
conv2d.default conv_transpose2d.input cos.default cumsum.default div.Scalar div.Tensor
einsum.default elu.default eq.Scalar erf.default exp.default expand.default expand_as.default
flatten.using_ints flip.default full_like.default ge.Scalar gelu.default group_norm.default
gt.Scalar hardsigmoid.default hardswish.default hardtanh.default index.Tensor index_select.default
instance_norm.default layer_norm.default le.Scalar leaky_relu.default linalg_vector_norm.default
linear.default log.default log_softmax.int logical_not.default lt.Scalar masked_fill.Scalar
matmul.default max.dim max_pool2d.default maximum.default mean.default mean.dim min.dim
minimum.default mish.default movedim.int mul.Scalar mul.Tensor ne.Scalar neg.default
ones_like.default pad.default permute.default pixel_shuffle.default pixel_unshuffle.default
pow.Tensor_Scalar prelu.default relu.default relu6.default repeat.default reshape.default
rms_norm.default roll.default rsqrt.default rsub.Scalar scaled_dot_product_attention.default
select.int sigmoid.default silu.default sin.default slice.Tensor slice_scatter.default softmax.int
softplus.default sqrt.default squeeze.default squeeze.dim squeeze.dims stack.default std.dim
sub.Scalar sub.Tensor sum.default sum.dim_IntList swapaxes.default tanh.default tile.default
to.dtype transpose.int tril.default triu.default unflatten.int unsqueeze.default
upsample_bicubic2d.vec upsample_bilinear2d.vec upsample_nearest2d.vec var.dim view.default
where.self zeros_like.default
"""
STORABLE = frozenset(f"aten.{name}" for name in _STORABLE.split())

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    )
}
_FLOATS = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}
_WRAPPED = ("value", "tensor", "batch", "dtype", "float")


@functools.cache
def operator(target: str) -> Callable[..., Any]:
    """The operator that a target such as ``"aten.permute.default"`` names.

    Raises:
        ModelFileError: this version of torch has no such operator.
    """
    try:
        namespace, name, overload = target.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), name), overload)  # type: ignore[no-any-return]
    except (ValueError, AttributeError):
        raise ModelFileError(f"torch {torch.__version__} has no operator {short(target)}") from None


@functools.cache
def _takes_device(target: str) -> bool:
    schema = getattr(operator(target), "_schema", None)
    return schema is not None and any(argument.name == "device" for argument in schema.arguments)


def bind(attrs: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """The attributes of a node with every ``{"batch": [a, b]}`` replaced by its integer."""
    return map_arguments(
        attrs, lambda kind, content: resolve({kind: content}, batch) if kind == "batch" else None
    )


def map_arguments(attrs: Mapping[str, Any], change: Callable[[str, Any], Any]) -> dict[str, Any]:
    """The attributes with some wrapped arguments replaced.

    Args:
        change: from the kind and content of ``{kind: content}`` to what replaces it, None to keep it.
    """

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            ((kind, content),) = value.items()
            replaced = change(kind, content)
            return value if replaced is None else replaced
        if isinstance(value, (list, tuple)):
            return [walk(item) for item in value]
        return value

    # A keyword argument may itself be called "batch" or "value", so kwargs is no wrapped object.
    kwargs = {key: walk(item) for key, item in attrs["kwargs"].items()}
    return {**attrs, "args": walk(attrs["args"]), "kwargs": kwargs}


def call(
    attrs: Mapping[str, Any],
    values: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Run an "aten" step whose batch is bound (see `bind`).

    Args:
        attrs: the step's ``target``, ``args``, ``kwargs`` and optional ``item`` (which of several results).
        values: the values computed so far. tensors: the stored constants.
        device: where operations without an input make their result.

    Raises:
        ModelFileError: the operation cannot work on what reaches it, which shapes alone did not tell.
    """
    target = attrs["target"]
    args = [_load(item, values, tensors) for item in attrs["args"]]
    kwargs = {key: _load(item, values, tensors) for key, item in attrs["kwargs"].items()}
    if _takes_device(target):
        kwargs["device"] = torch.device(device)
    try:
        result = operator(target)(*args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelFileError(f"the model's operation {target} cannot run on its inputs: {reason}") from error
    item = attrs.get("item")
    if item is not None:
        result = result[item]
    if not isinstance(result, Tensor):
        raise TypeError(f"{target} returns {type(result).__name__}, not one tensor")
    return result


def _load(value: Any, values: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, Mapping):
        ((kind, content),) = value.items()
        if kind == "value":
            return values[content]
        if kind == "tensor":
            return tensors[content]
        if kind == "dtype":
            return DTYPES[content]
        return _FLOATS[content]
    if isinstance(value, list):
        return [_load(item, values, tensors) for item in value]
    return value


def check(attrs: Mapping[str, Any], inputs: tuple[str, ...], where: str) -> None:
    """Check an "aten" node of a file: a known operator and well-formed arguments.

    Raises:
        ModelFileError: naming the node and the rule.
    """
    if attrs["target"] not in STORABLE:
        raise ModelFileError(f"config.json: {where}: {short(attrs['target'])} is not an allowed operation")
    used: set[str] = set()
    _check_argument(attrs["args"], where, used, depth=0)
    for key, value in attrs["kwargs"].items():
        if not key.isidentifier():
            raise ModelFileError(f"config.json: {where}: {short(key)} is not the name of an argument")
        if key == "device":
            raise ModelFileError(f"config.json: {where}: the argument 'device' is not allowed")
        _check_argument(value, where, used, depth=0)
    if used != set(inputs):
        raise ModelFileError(f"config.json: {where}: inputs must list exactly the values in args and kwargs")


def _check_argument(value: Any, where: str, used: set[str], depth: int) -> None:
    if depth > 4:
        raise ModelFileError(f"config.json: {where}: arguments are nested deeper than 4")
    if isinstance(value, list):
        for item in value:
            _check_argument(item, where, used, depth + 1)
    elif isinstance(value, dict):
        if len(value) != 1 or next(iter(value)) not in _WRAPPED:
            raise ModelFileError(
                f"config.json: {where}: an object argument must hold one key of {', '.join(_WRAPPED)}"
            )
        ((kind, content),) = value.items()
        valid = {
            "value": lambda: isinstance(content, str),
            "tensor": lambda: isinstance(content, str),
            "batch": lambda: (
                isinstance(content, list)
                and len(content) == 2
                and all(is_int(item, -(1 << 20), 1 << 20) for item in content)
            ),
            "dtype": lambda: isinstance(content, str) and content in DTYPES,
            "float": lambda: isinstance(content, str) and content in _FLOATS,
        }
        if not valid[kind]():
            raise ModelFileError(f"config.json: {where}: {short(content)} is not a valid {kind}")
        if kind == "value":
            used.add(content)
    elif type(value) is int and not -(1 << 62) <= value < 1 << 63:  # PyTorch keeps what is below for itself
        raise ModelFileError(f"config.json: {where}: {short(value)} lies outside -2^62 to 2^63 - 1")
