"""Executor that runs a plan with plain PyTorch operations: the oracle for the fast ones."""

from __future__ import annotations

import torch
from torch import Tensor

from finepruning.engine.activations import ACTIVATIONS
from finepruning.engine.operations import run_dense
from finepruning.engine.plan import Plan, Step, StepReport
from finepruning.sparse import aten
from finepruning.sparse.csr import CSR


class ReferenceExecutor:
    """Runs a plan step by step with dense weights; keeps every value until the call ends.

    Args:
        plan: what to run. device: where; inputs must be there.
    """

    def __init__(self, plan: Plan, device: torch.device | str = "cpu") -> None:
        self.plan = plan
        self.device = torch.device(device)
        self._weights = {
            step.name: _dense(step.weight).to(self.device) for step in plan.steps if step.weight is not None
        }
        self._biases = {step.name: step.bias.to(self.device) for step in plan.steps if step.bias is not None}
        self._tensors = {name: tensor.to(self.device) for name, tensor in plan.tensors.items()}

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        values = {self.plan.input: x}
        for step in self.plan.steps:
            values[step.output] = self._run(step, values)
        return values[self.plan.output]

    def _run(self, step: Step, values: dict[str, Tensor]) -> Tensor:
        if step.op == "aten":
            result = aten.call(step.attrs, values, self._tensors, self.device)
        else:
            inputs = [values[name] for name in step.inputs]
            result = run_dense(step.op, step.attrs, inputs, *self._parameters(step, inputs[0]))
        if step.residual is not None:
            result = result + values[step.residual]
        if step.activation is not None:
            result = ACTIVATIONS[step.activation](result)
        expected = self.plan.values[step.output].shape
        assert tuple(result.shape) == expected, f"{step.name}: {tuple(result.shape)} is not {expected}"
        return result

    def _parameters(self, step: Step, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weight, bias = self._weights.get(step.name), self._biases.get(step.name)
        return tuple(None if t is None else t.to(x.dtype) for t in (weight, bias))  # type: ignore[return-value]

    def report(self) -> list[StepReport]:
        rows = []
        for step in self.plan.steps:
            weight = self._weights.get(step.name)
            fused = fused_names(step)
            rows.append(
                StepReport(
                    name=step.name,
                    op=step.op,
                    fused=fused,
                    kernel="aten",
                    shape=self.plan.values[step.output].shape,
                    nnz=None if weight is None else int(weight.count_nonzero()),
                    size=None if weight is None else weight.numel(),
                    bytes=0 if weight is None else weight.nbytes,
                    why_dense="reference executor" if isinstance(step.weight, CSR) else None,
                )
            )
        return rows

    @property
    def arena_bytes(self) -> int:
        return sum(
            torch.empty(0, dtype=value.dtype).element_size() * torch.Size(value.shape).numel()
            for value in self.plan.values.values()
        )


def fused_names(step: Step) -> tuple[str, ...]:
    """What is fused into a step, in the order in which it is applied."""
    names = (
        "bias" if step.bias is not None else None,
        "residual" if step.residual else None,
        step.activation,
    )
    return tuple(name for name in names if name is not None)


def _dense(weight: CSR | Tensor) -> Tensor:
    return weight.to_dense() if isinstance(weight, CSR) else weight
