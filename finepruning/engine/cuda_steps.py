"""One launch function for every step of a plan: Triton kernels where we have them, PyTorch for the rest.

Functions built here run on the current stream, read and write fixed memory and take no decisions, so
that a CUDA graph can capture them. What PyTorch allocates on the way belongs to the graph's own pool.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from finepruning.engine import cuda_weights
from finepruning.engine.activations import ACTIVATIONS
from finepruning.engine.cuda_choice import Choice
from finepruning.engine.cuda_layout import Placement
from finepruning.engine.plan import Step
from finepruning.kernels.dense_conv2d import tile_of
from finepruning.kernels.table import KERNELS, linear_kernel
from finepruning.sparse import aten
from finepruning.sparse.csr import CSR

Launch = Callable[[], None]


@dataclass(frozen=True)
class Context:
    """What steps are built from.

    Attributes:
        values: name -> view of the value's memory. placed: name -> where and how it lies there.
        scratch: step name -> memory of the layer's dense weight, of the value's dtype.
        tensors: stored constants on the device. dense_order: memory order cuDNN reads.
    """

    values: Mapping[str, Tensor]
    placed: Mapping[str, Placement]
    scratch: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    device: torch.device
    dense_order: Literal["contiguous", "channels_last"]


@dataclass(frozen=True)
class Built:
    """A step ready to run. ``weight`` keeps the shared weight alive; ``kernel`` names what runs."""

    launch: Launch
    kernel: str
    weight: cuda_weights.Packed | cuda_weights.Dense | None = None
    bias: cuda_weights.Dense | None = None

    @property
    def nbytes(self) -> int:
        bias = 0 if self.bias is None else self.bias.nbytes
        return bias + (0 if self.weight is None else self.weight.nbytes)


def scratch_bytes(step: Step, choice: Choice | None, dtype: torch.dtype) -> int:
    """Bytes of scratch a step needs while it runs: the dense weight or some rows of it."""
    if choice is None or choice.method != "expand" or not isinstance(step.weight, CSR):
        return 0
    rows, columns = step.weight.rows, step.weight.columns
    if step.op == "linear":
        rows = min(rows, cuda_weights.scratch_rows(columns, rows, dtype))
    return rows * columns * dtype.itemsize


def build(step: Step, choice: Choice | None, context: Context) -> Built:
    """Build one step; the launch function is what runs at every call."""
    if step.weight is not None:
        return _weighted(step, choice, context)
    y = context.values[step.output]
    mapped = y.dim() in (2, 4) and y.is_floating_point()
    inputs = [context.values[name] for name in step.inputs]
    finish = {
        "residual": None if step.residual is None else context.values[step.residual],
        "activation": step.activation,
    }
    halo = context.placed[step.output].halo
    if step.op in ("max_pool2d", "avg_pool2d") and mapped and step.residual is None:
        return Built(_pool(step, inputs[0], y, halo), f"triton {step.op}")
    if step.op in ("add", "mul", "identity") and mapped:
        operation = "copy" if step.op == "identity" else step.op
        b = inputs[1] if len(inputs) > 1 else None
        launch = functools.partial(KERNELS[operation].launch, inputs[0], y, b=b, halo=halo, **finish)
        return Built(launch, f"triton {operation}")
    if step.op == "concat" and mapped and step.attrs["dim"] % y.dim() == 1 and step.residual is None:
        return Built(_concat(inputs, y, halo, step.activation), "triton copy")
    if step.op == "view" and context.placed[step.output].source is not None:
        return Built(_nothing, "view")
    return Built(_store(step, _operation(step, context), context), "aten")


def _nothing() -> None:
    """A step that moves no data."""


def _store(step: Step, compute: Callable[[], Tensor], context: Context, bias: Tensor | None = None) -> Launch:
    """Bias per channel, residual and activation of a fresh result, written to the value in one launch."""
    y = context.values[step.output]
    halo = context.placed[step.output].halo
    residual = None if step.residual is None else context.values[step.residual]
    activation = step.activation
    if y.dim() in (2, 4) and y.is_floating_point():
        shift = None if bias is None else bias.view(1, -1, *[1] * (y.dim() - 2))
        kernel = KERNELS["copy" if shift is None else "add"]

        def finish() -> None:
            kernel.launch(compute(), y, b=shift, residual=residual, activation=activation, halo=halo)

        return finish

    def copy() -> None:
        result = compute()
        if residual is not None:
            result = result + residual
        y.copy_(ACTIVATIONS[activation](result))

    return copy


def _pool(step: Step, x: Tensor, y: Tensor, halo: int) -> Launch:
    attrs = step.attrs
    common = {
        "kernel": tuple(attrs["kernel"]),
        "stride": tuple(attrs["stride"]),
        "padding": tuple(attrs["padding"]),
        "activation": step.activation,
        "halo": halo,
    }
    if step.op == "max_pool2d":
        common["dilation"] = tuple(attrs["dilation"])
    else:
        common |= {name: attrs[name] for name in ("count_include_pad", "divisor_override")}
    return functools.partial(KERNELS[step.op].launch, x, y, **common)


def _concat(inputs: list[Tensor], y: Tensor, halo: int, activation: str | None) -> Launch:
    sizes = [x.shape[1] for x in inputs]
    parts = list(zip(inputs, torch.split(y, sizes, 1), strict=True))

    def launch() -> None:
        for x, part in parts:
            KERNELS["copy"].launch(x, part, activation=activation, halo=halo)

    return launch


def _weighted(step: Step, choice: Choice | None, context: Context) -> Built:
    assert step.weight is not None
    x, y = context.values[step.inputs[0]], context.values[step.output]
    shift = None if step.bias is None else cuda_weights.dense(step.bias, y.dtype, context.device)
    bias = None if shift is None else shift.tensor
    convolution = step.op == "conv2d"
    geometry = _geometry(step) if convolution else {}
    method = "dense" if choice is None else choice.method
    if method == "sparse":
        assert isinstance(step.weight, CSR)
        weight = cuda_weights.packed(step.weight, y.dtype, context.device)
        finish: dict[str, Any] = {
            "bias": bias,
            "residual": None if step.residual is None else context.values[step.residual],
            "activation": step.activation,
        }
        if convolution:
            halo = context.placed[step.output].halo
            kernel = tuple(step.weight.shape[2:])
            found = KERNELS["sparse_conv2d"]
            finish |= {"kernel": kernel, "halo": halo, **geometry}
        else:
            found = linear_kernel(y.shape[0])
        sparse = functools.partial(found.launch, x, weight.ell, y, **finish)
        return Built(sparse, f"triton {found.name}", weight, shift)
    expand: Launch | None = None
    held: cuda_weights.Packed | cuda_weights.Dense
    if method == "expand":
        assert isinstance(step.weight, CSR)
        weight = cuda_weights.packed(step.weight, y.dtype, context.device)
        scratch = context.scratch[step.name]
        if not convolution:
            compute = _expanded_linear(x, weight, scratch, bias)
            return Built(_store(step, compute, context), "triton expand + cublas", weight, shift)
        filters = _filters(scratch, step.weight.shape, context.dense_order)
        expand = _expansion(weight, scratch, step.weight.shape, context.dense_order)
        prefix, held = "triton expand + ", weight
    else:
        order = context.dense_order if convolution else "contiguous"
        resident = cuda_weights.dense(step.weight, y.dtype, context.device, order)
        if not convolution:
            compute = functools.partial(F.linear, x, resident.tensor, bias)
            return Built(_store(step, compute, context), "cublas", resident, shift)
        filters, prefix, held = resident.tensor, "", resident
    if choice is not None and choice.fused:
        launch = _fused_convolution(step, x, filters, bias, geometry, context)
        runs = f"{prefix or 'triton '}dense_conv2d"
    else:
        compute = functools.partial(_convolve, x, filters, geometry, context.dense_order)
        launch, runs = _store(step, compute, context, bias), f"{prefix}cudnn"
    return Built(launch if expand is None else _both(expand, launch), runs, held, shift)


def _both(first: Launch, second: Launch) -> Launch:
    def launch() -> None:
        first()
        second()

    return launch


def _geometry(step: Step) -> dict[str, Any]:
    attrs = step.attrs
    pairs = {name: tuple(attrs[name]) for name in ("stride", "padding", "dilation")}
    return {**pairs, "groups": attrs["groups"]}


def _convolve(x: Tensor, weight: Tensor, geometry: Mapping[str, Any], order: str) -> Tensor:
    memory_format = torch.channels_last if order == "channels_last" else torch.contiguous_format
    return F.conv2d(x.contiguous(memory_format=memory_format), weight, None, **geometry)


def _filters(scratch: Tensor, shape: tuple[int, ...], order: str) -> Tensor:
    """``scratch`` as the weight of a convolution, ``[OC, C, kh, kw]``."""
    rows, channels, kernel_h, kernel_w = shape
    if order == "channels_last":
        return scratch.view(rows, kernel_h, kernel_w, channels).permute(0, 3, 1, 2)
    return scratch.view(shape)


def _expansion(weight: cuda_weights.Packed, scratch: Tensor, shape: tuple[int, ...], order: str) -> Launch:
    return functools.partial(
        KERNELS["expand"].launch,
        weight.ell,
        scratch.view(shape[0], -1),
        kernel=tuple(shape[2:]),
        channels_last=order == "channels_last",
    )


def _fused_convolution(
    step: Step, x: Tensor, filters: Tensor, bias: Tensor | None, geometry: Mapping[str, Any], context: Context
) -> Launch:
    """The convolution with all that follows it in one launch, on tensor cores."""
    y = context.values[step.output]
    matrix = filters.permute(0, 2, 3, 1).reshape(filters.shape[0], -1)
    tile = tile_of(x, matrix, y)
    arrived = torch.zeros(tile.tiles, dtype=torch.int32, device=context.device)
    sizes = {name: geometry[name] for name in ("stride", "padding", "dilation")}
    residual = None if step.residual is None else context.values[step.residual]

    def launch() -> None:
        # Memory that a capture allocates belongs to its graph.
        partial = torch.empty(max(tile.partial, 1), dtype=torch.float32, device=context.device)
        KERNELS["dense_conv2d"].launch(
            x.contiguous(memory_format=torch.channels_last),
            matrix,
            y,
            partial,
            arrived,
            kernel=tuple(filters.shape[2:]),
            bias=bias,
            residual=residual,
            activation=step.activation,
            halo=context.placed[step.output].halo,
            tile=tile,
            **sizes,
        )

    return launch


def _expanded_linear(
    x: Tensor, weight: cuda_weights.Packed, scratch: Tensor, bias: Tensor | None
) -> Callable[[], Tensor]:
    rows, columns = weight.ell.rows, weight.ell.columns
    block = min(rows, weight.ell.window)

    def compute() -> Tensor:
        parts = []
        for first in range(0, rows, block):
            count = min(block, rows - first)
            matrix = scratch[: count * columns].view(count, columns)
            KERNELS["expand"].launch(weight.ell, matrix, first_row=first)
            parts.append(F.linear(x, matrix, None if bias is None else bias[first : first + count]))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    return compute


def _operation(step: Step, context: Context) -> Callable[[], Tensor]:
    """The result of a step without weights as a new tensor (or a view), through PyTorch."""
    attrs = step.attrs
    inputs = [context.values[name] for name in step.inputs]
    match step.op:
        case "aten":
            return functools.partial(aten.call, attrs, context.values, context.tensors, context.device)
        case "max_pool2d":
            sizes = [tuple(attrs[name]) for name in ("kernel", "stride", "padding", "dilation")]
            return functools.partial(F.max_pool2d, inputs[0], *sizes, attrs["ceil_mode"])
        case "avg_pool2d":
            return lambda: F.avg_pool2d(
                inputs[0],
                tuple(attrs["kernel"]),
                tuple(attrs["stride"]),
                tuple(attrs["padding"]),
                attrs["ceil_mode"],
                attrs["count_include_pad"],
                attrs["divisor_override"],
            )
        case "add":
            return functools.partial(torch.add, inputs[0], inputs[1])
        case "mul":
            return functools.partial(torch.mul, inputs[0], inputs[1])
        case "identity":
            return lambda: inputs[0]
        case "concat":
            return functools.partial(torch.cat, inputs, attrs["dim"])
        case "view":
            return functools.partial(torch.reshape, inputs[0], tuple(attrs["shape"]))
    raise NotImplementedError(f"step {step.name}: no operation {step.op!r}")
