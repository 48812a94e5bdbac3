"""Runs one step of a plan with PyTorch's own operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from finepruning.engine.activations import ACTIVATIONS
from finepruning.engine.plan import Plan, Step
from finepruning.sparse import aten
from finepruning.sparse.csr import CSR


def step_runner(plan: Plan, step: Step) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """A function from the values computed so far to the step's result."""
    weight = step.weight.to_dense().float() if isinstance(step.weight, CSR) else step.weight
    operation = _operation(plan, step, weight)
    activation = ACTIVATIONS[step.activation]
    residual = step.residual

    def run(values: Mapping[str, Tensor]) -> Tensor:
        result = operation(values)
        if residual is not None:
            result = result + values[residual]
        return activation(result)

    return run


def _operation(plan: Plan, step: Step, weight: Tensor | None) -> Callable[[Mapping[str, Tensor]], Tensor]:
    attrs = step.attrs
    names = step.inputs
    if step.op == "aten":
        return lambda values: aten.call(attrs, values, plan.tensors)
    if step.op == "conv2d":
        assert weight is not None
        kernel = weight
        return lambda values: F.conv2d(
            values[names[0]],
            kernel,
            step.bias,
            tuple(attrs["stride"]),
            tuple(attrs["padding"]),
            tuple(attrs["dilation"]),
            attrs["groups"],
        )
    if step.op == "linear":
        assert weight is not None
        matrix = weight
        return lambda values: F.linear(values[names[0]], matrix, step.bias)
    if step.op == "max_pool2d":
        return lambda values: F.max_pool2d(
            values[names[0]],
            tuple(attrs["kernel"]),
            tuple(attrs["stride"]),
            tuple(attrs["padding"]),
            tuple(attrs["dilation"]),
            attrs["ceil_mode"],
        )
    if step.op == "avg_pool2d":
        return lambda values: F.avg_pool2d(
            values[names[0]],
            tuple(attrs["kernel"]),
            tuple(attrs["stride"]),
            tuple(attrs["padding"]),
            attrs["ceil_mode"],
            attrs["count_include_pad"],
            attrs["divisor_override"],
        )
    if step.op == "add":
        return lambda values: values[names[0]] + values[names[1]]
    if step.op == "mul":
        return lambda values: values[names[0]] * values[names[1]]
    if step.op == "concat":
        return lambda values: torch.cat([values[name] for name in names], attrs["dim"])
    if step.op == "view":
        shape = plan.values[step.output].shape
        return lambda values: values[names[0]].reshape(shape)
    if step.op == "identity":
        return lambda values: values[names[0]]
    raise NotImplementedError(f"no operation {step.op!r} in step {step.name!r}")
