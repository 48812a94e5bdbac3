"""The plan: the ordered, fused steps that run a model for one input shape.

A plan is device-independent: shapes are resolved, bias, activation and residual additions are fused
into the step that produces the value. An executor (cpu.py, cuda.py) then chooses layouts, kernels and
arena offsets, and reports its choices as `StepReport`s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from finepruning.sparse.csr import CSR


@dataclass(frozen=True)
class Value:
    """A tensor that flows between steps: its name, resolved shape (batch included) and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Step:
    """One fused operation.

    ``op`` and its ``attrs`` (all ints unless said otherwise; pairs are ``(height, width)``):

    ========== =====================================================================================
    conv2d     stride, padding, dilation: pairs; groups. Padding is symmetric.
    linear     over the last dimension of the input
    max_pool2d kernel, stride, padding, dilation: pairs; ceil_mode: bool
    avg_pool2d kernel, stride, padding: pairs; ceil_mode, count_include_pad: bool;
               divisor_override: int or None. A global average has kernel = map size.
    add, mul   two inputs of broadcastable shape
    identity   the input itself (carries an activation that could not be fused further up)
    concat     any number of inputs; dim
    view       same elements in the same order, new shape (flatten, reshape, unsqueeze)
    aten       target: str such as "aten.permute.default"; args, kwargs: nested lists, numbers, None,
               str, with ``{"value": name}`` for a value and ``{"tensor": name}`` for a stored tensor
    ========== =====================================================================================

    After the operation, in this order: ``bias`` is added (per output channel), then the value
    ``residual``, then ``activation`` is applied.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    output: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    weight: CSR | Tensor | None = None
    bias: Tensor | None = None
    residual: str | None = None
    activation: str | None = None  # "relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid", "gelu"


@dataclass(frozen=True)
class Plan:
    """Steps in execution order over named values.

    Attributes:
        steps: every step reads values that earlier steps (or the input) produced.
        values: name -> `Value` for the input and the output of every step.
        input: name of the input value; output: name of the result.
        tensors: stored constants that "aten" steps refer to.
    """

    steps: tuple[Step, ...]
    values: Mapping[str, Value]
    input: str
    output: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        return self.values[self.input].shape[0]


@dataclass(frozen=True)
class StepReport:
    """What an executor decided for one step; one row of ``print(model.plan())``.

    Attributes:
        name, op: the step's. fused: what was fused into it, such as ``("bias", "relu")``.
        kernel: name of the kernel as in the table of kernels ("aten" for a PyTorch fallback).
        shape: output shape. nnz: stored weights (None without weights); size: dense weight count.
        bytes: resident bytes of the packed weights.
        why_dense: reason when a layer with zeros in its weights runs dense, else None.
    """

    name: str
    op: str
    fused: tuple[str, ...]
    kernel: str
    shape: tuple[int, ...]
    nnz: int | None
    size: int | None
    bytes: int
    why_dense: str | None = None


class Executor(Protocol):
    """Runs one plan. Safe to call from several threads at once."""

    def __call__(self, x: Tensor) -> Tensor:
        """Run the plan on ``x`` (shape and dtype of the plan's input, any strides)."""
        ...

    def report(self) -> list[StepReport]: ...

    @property
    def arena_bytes(self) -> int:
        """Bytes of activations and scratch that one call in flight holds."""
        ...


def keeps_images_apart(plan: Plan) -> bool:
    """Whether rows of the plan's result depend on the same row of its input alone.

    True only where that is certain: no ATen operation, no concatenation of batches, and the batch first
    in every value.
    """
    return all(
        step.op != "aten" and not (step.op == "concat" and step.attrs["dim"] in (0, -len(value.shape)))
        for step in plan.steps
        for value in (plan.values[step.output],)
    ) and all(len(value.shape) > 1 and value.shape[0] == plan.batch for value in plan.values.values())
