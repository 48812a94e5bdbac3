"""Runs one step of a plan with PyTorch's own operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from finepruning.engine.activations import ACTIVATIONS
from finepruning.engine.operations import run_dense
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
    if step.op == "aten":
        return lambda values: aten.call(step.attrs, values, plan.tensors)
    attrs = {**step.attrs, "shape": plan.values[step.output].shape} if step.op == "view" else step.attrs
    return lambda values: run_dense(step.op, attrs, [values[name] for name in step.inputs], weight, step.bias)
