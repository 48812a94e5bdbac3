"""Checks that a plan is consistent before an executor turns it into steps over raw memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from finepruning.engine.activations import ACTIVATIONS
from finepruning.engine.plan import Plan, Step
from finepruning.errors import ArgumentError, ModelFileError
from finepruning.sparse import aten
from finepruning.sparse.csr import CSR
from finepruning.sparse.graph import OPS, Graph, Node, is_int, references, short
from finepruning.sparse.shapes import Stored, infer

MAX_BATCH = 1 << 20


def check(plan: Plan) -> None:
    """Every step reads what earlier steps made, with attributes and weights that fit, and makes its value.

    Raises:
        ArgumentError: naming the step and the rule that it breaks.
    """
    source = plan.values.get(plan.input)
    if source is None or not source.shape or not is_int(source.shape[0], 1, MAX_BATCH):
        raise ArgumentError(f"plan: {short(plan.input)} is no input of 1 to {MAX_BATCH} images")
    if not isinstance(source.shape, tuple) or not all(is_int(extent, 1, 1 << 31) for extent in source.shape):
        raise ArgumentError(f"plan: the input has shape {short(source.shape)}")
    nodes: list[Node] = []
    tensors: dict[str, Stored] = dict(plan.tensors)
    known = {plan.input}
    for index, step in enumerate(plan.steps):
        try:
            nodes.append(_node(step, known, plan.tensors, f"{index} weight", f"{index} bias"))
        except ArgumentError as error:
            raise ArgumentError(f"plan: step {short(step.name)} ({short(step.op)}): {error}") from None
        known.add(step.output)
        for name, stored in ((f"{index} weight", step.weight), (f"{index} bias", step.bias)):
            if stored is not None:
                tensors[name] = stored
    if not plan.steps or plan.output not in known - {plan.input}:
        raise ArgumentError(f"plan: no step makes the output {short(plan.output)}")
    graph = Graph(plan.input, source.shape[1:], tuple(nodes), plan.output)
    try:
        inferred = infer(graph, tensors, plan.batch, source.dtype)
    except ModelFileError as error:
        raise ArgumentError(f"plan: {str(error).removeprefix('config.json: ')}") from None
    for step in plan.steps:
        _check_value(plan, step, inferred)


def _node(step: Step, known: set[str], tensors: Mapping[str, Tensor], weight: str, bias: str) -> Node:
    """The step as a node of a graph, whose shape can be inferred."""
    spec = OPS.get("activation" if step.op == "identity" else step.op)
    if spec is None or step.op in ("activation", "adaptive_avg_pool2d"):
        raise ArgumentError("there is no such operation in plans")
    read = (*step.inputs, *(() if step.residual is None else (step.residual,)))
    for name in read:
        if name not in known:
            raise ArgumentError(f"{short(name)} is not made before this step")
    if step.output in known:
        raise ArgumentError(f"{short(step.output)} is made twice")
    least, most = spec.inputs
    if not least <= len(step.inputs) <= most:
        raise ArgumentError(f"takes {least} to {most} inputs, not {len(step.inputs)}")
    rules = {} if step.op == "identity" else spec.attrs
    attrs = {key: list(item) if isinstance(item, tuple) else item for key, item in step.attrs.items()}
    for key in {*rules, *attrs}:
        if key not in rules or key not in attrs or not rules[key].holds(attrs[key]):
            wanted = rules[key].text if key in rules else "absent"
            raise ArgumentError(f"{key} must be {wanted}, not {short(attrs.get(key))}")
    if step.op == "aten":
        _check_aten(step, tensors)
    if spec.weighted != (step.weight is not None) or (step.bias is not None and not spec.weighted):
        raise ArgumentError("needs a weight" if spec.weighted else "takes neither weight nor bias")
    if isinstance(step.weight, Tensor) and not step.weight.is_floating_point():
        raise ArgumentError(f"its weight must be floating-point, not {step.weight.dtype}")
    if step.bias is not None and not (isinstance(step.bias, Tensor) and step.bias.is_floating_point()):
        raise ArgumentError("its bias must be a floating-point tensor")
    if step.activation not in ACTIVATIONS:
        raise ArgumentError(f"activation must be one of {list(ACTIVATIONS)}, not {short(step.activation)}")
    names = (None if step.weight is None else weight, None if step.bias is None else bias)
    return Node(step.output, "activation" if step.op == "identity" else step.op, step.inputs, attrs, *names)


def _check_aten(step: Step, tensors: Mapping[str, Tensor]) -> None:
    if step.attrs["target"] in aten.STORABLE:
        try:
            aten.check(step.attrs, step.inputs, "its call")
        except ModelFileError as error:
            raise ArgumentError(str(error).removeprefix("config.json: ")) from None
    for name in references(step.attrs, "tensor"):
        if isinstance(tensors.get(name, None), CSR | None):
            raise ArgumentError(f"there is no constant {short(name)}")


def _check_value(plan: Plan, step: Step, inferred: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
    where = f"plan: step {short(step.name)} ({step.op}): "
    value = plan.values.get(step.output)
    shape, dtype = inferred[step.output]
    exact = value is not None and all(type(extent) is int for extent in value.shape)
    if value is None or not exact or (value.shape, value.dtype) != (shape, dtype):
        raise ArgumentError(f"{where}makes {dtype} of shape {short(shape)}, not {short(value)}")
    floating = dtype.is_floating_point
    if (step.activation is not None or step.residual is not None) and not floating:
        raise ArgumentError(f"{where}adds to and clamps floating-point values only, not {dtype}")
    if step.residual is not None and inferred[step.residual] != (shape, dtype):
        raise ArgumentError(
            f"{where}its residual has another shape or type: {short(inferred[step.residual])}"
        )
    if isinstance(step.weight, CSR) and dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ArgumentError(f"{where}sparse layers make no {dtype}")
