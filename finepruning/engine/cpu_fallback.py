"""Runs one step of a plan with PyTorch's own operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from finepruning.engine.activations import ACTIVATIONS
from finepruning.engine.operations import run_dense
from finepruning.engine.plan import Plan, Step
from finepruning.sparse import aten
from finepruning.sparse.csr import CSR

# Bytes of results that PyTorch makes at a time: they stay in the cache, and their memory in the process. A
# large result takes new pages in every call: for a first convolution half the time of its arithmetic.
PIECE_BYTES = 1 << 21
# PyTorch brings weights into its own order in every call.
PIECE_WEIGHT_BYTES = 1 << 18


def step_filler(plan: Plan, step: Step) -> Callable[[Mapping[str, Tensor], Tensor], None] | None:
    """A function that writes the step's result into a flat tensor, some images at a time.

    None unless the step is a convolution of large maps with few weights.
    """
    weight, value = step.weight, plan.values[step.output]
    if step.op != "conv2d" or not isinstance(weight, Tensor) or step.residual is not None:
        return None
    of_batch = value.dtype.itemsize * math.prod(value.shape)
    if value.dtype != torch.float32 or of_batch <= PIECE_BYTES or weight.nbytes > PIECE_WEIGHT_BYTES:
        return None
    images = max(1, PIECE_BYTES * value.shape[0] // of_batch)
    run, source = step_runner(plan, step), step.inputs[0]

    def fill(values: Mapping[str, Tensor], target: Tensor) -> None:
        pieces = zip(
            torch.split(values[source], images), torch.split(target.view(value.shape), images), strict=True
        )
        for some, result in pieces:
            result.copy_(run({source: some}))

    return fill


def step_runner(plan: Plan, step: Step) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """A function from the values computed so far to the step's result."""
    weight = step.weight.to_dense().float() if isinstance(step.weight, CSR) else step.weight
    operation = _operation(plan, step, weight)
    activation = ACTIVATIONS[step.activation]
    residual = step.residual

    # Their result is new memory, which what follows may overwrite: maps of a large batch exceed the caches.
    fresh = step.op in ("conv2d", "linear")

    def run(values: Mapping[str, Tensor]) -> Tensor:
        result = operation(values)
        if residual is not None:
            other = values[residual]
            in_place = fresh and other.shape == result.shape
            result = result.add_(other) if in_place else result + other
        if fresh and step.activation == "relu":
            return result.relu_()
        return activation(result)

    return run


def _operation(plan: Plan, step: Step, weight: Tensor | None) -> Callable[[Mapping[str, Tensor]], Tensor]:
    if step.op == "aten":
        return lambda values: aten.call(step.attrs, values, plan.tensors)
    attrs = {**step.attrs, "shape": plan.values[step.output].shape} if step.op == "view" else step.attrs
    return lambda values: run_dense(step.op, attrs, [values[name] for name in step.inputs], weight, step.bias)
