"""Graph -> plan: shapes resolved for one batch, and operations fused into the step before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from finepruning.engine.plan import Plan, Step, Value
from finepruning.sparse import aten
from finepruning.sparse.csr import CSR
from finepruning.sparse.graph import Graph, Node, references
from finepruning.sparse.shapes import Stored, infer


@dataclass
class _Draft:
    """A step while operations are being fused into it."""

    name: str
    op: str
    inputs: list[str]
    output: str
    attrs: dict[str, Any] = field(default_factory=dict)
    weight: Stored | None = None
    bias: Tensor | None = None
    residual: str | None = None
    activation: str | None = None


def fuse(graph: Graph, tensors: Mapping[str, Stored], batch: int, dtype: torch.dtype = torch.float32) -> Plan:
    """Make the plan that runs ``graph`` on ``batch`` inputs.

    Args:
        graph, tensors: as captured or loaded. batch: images per call, at least 1.
        dtype: of the values that flow between steps, and of the dense weights and biases of its steps.

    Raises:
        ModelFileError: the graph does not fit its tensors or this batch.
    """
    inferred = infer(graph, tensors, batch, dtype)
    shapes = {name: shape for name, (shape, _) in inferred.items()}
    fuser = _Fuser(graph, tensors, shapes, batch, dtype)
    drafts = fuser.run()
    values = {graph.input: Value(graph.input, *inferred[graph.input])}
    for draft in drafts:
        values[draft.output] = Value(draft.output, *inferred[draft.output])
    constants: dict[str, Tensor] = {}
    for draft in drafts:
        if draft.op == "aten":
            for name in references(draft.attrs, "tensor"):
                stored = tensors[name]
                assert isinstance(stored, Tensor)
                constants[name] = stored.to(dtype) if stored.is_floating_point() else stored
    steps = tuple(
        Step(d.name, d.op, tuple(d.inputs), d.output, d.attrs, d.weight, d.bias, d.residual, d.activation)
        for d in drafts
    )
    return Plan(steps, values, graph.input, fuser.name(graph.output), constants)


class _Fuser:
    def __init__(
        self,
        graph: Graph,
        tensors: Mapping[str, Stored],
        shapes: Mapping[str, tuple[int, ...]],
        batch: int,
        dtype: torch.dtype,
    ) -> None:
        self.graph, self.tensors, self.shapes = graph, tensors, shapes
        self.batch, self.dtype = batch, dtype
        self.uses = Counter(name for node in graph.nodes for name in node.inputs)
        self.uses[graph.output] += 1
        self.drafts: dict[str, _Draft] = {}  # by output value, in execution order
        self.alias: dict[str, str] = {}  # value -> the value that holds the same elements

    def name(self, value: str) -> str:
        return self.alias.get(value, value)

    def run(self) -> list[_Draft]:
        for node in self.graph.nodes:
            inputs = [self.name(value) for value in node.inputs]
            if node.op == "activation":
                self._activation(node, inputs[0])
            elif node.op == "add" and self._residual(node, inputs):
                pass
            elif node.op == "adaptive_avg_pool2d":
                self._adaptive(node, inputs[0])
            else:
                self._plain(node, inputs)
        return list(self.drafts.values())

    def _add(self, draft: _Draft) -> None:
        self.drafts[draft.output] = draft

    def _rename(self, draft: _Draft, output: str) -> None:
        """The step now produces ``output``, and runs at this place in the order."""
        del self.drafts[draft.output]
        draft.output = output
        self.drafts[output] = draft

    def _plain(self, node: Node, inputs: list[str]) -> None:
        weight, bias = self._stored(node.weight), self._stored(node.bias)
        assert not isinstance(bias, CSR)
        op, attrs = node.op, dict(node.attrs)
        if op == "view":
            if self.shapes[node.name] == self.shapes[node.inputs[0]] and node.name != self.graph.output:
                self.alias[node.name] = inputs[0]
                self.uses[inputs[0]] += self.uses[node.name] - 1
                return
            attrs = {"shape": list(self.shapes[node.name])}
        elif op == "aten":
            attrs = aten.map_arguments(
                aten.bind(attrs, self.batch),
                lambda kind, content: {"value": self.name(content)} if kind == "value" else None,
            )
        else:
            attrs = {key: tuple(item) if isinstance(item, list) else item for key, item in attrs.items()}
        self._add(_Draft(node.name, op, inputs, node.name, attrs, weight, bias))

    def _stored(self, name: str | None) -> Stored | None:
        """A layer's weight or bias; what is dense in the type of the values that it meets."""
        stored = None if name is None else self.tensors[name]
        return stored.to(self.dtype) if isinstance(stored, Tensor) else stored

    def _activation(self, node: Node, source: str) -> None:
        producer = self.drafts.get(source)
        kind = node.attrs["kind"]
        if producer is not None and self.uses[source] == 1 and producer.op not in ("view", "aten"):
            if producer.activation is None:
                producer.activation = kind
                self._rename(producer, node.name)
                return
            if producer.activation == kind and kind in ("relu", "relu6"):  # applying it twice changes nothing
                self._rename(producer, node.name)
                return
        self._add(_Draft(node.name, "identity", [source], node.name, activation=kind))

    def _residual(self, node: Node, inputs: list[str]) -> bool:
        """Fuse an addition into the convolution or linear layer that made one of its operands."""
        order = {output: index for index, output in enumerate(self.drafts)}
        for own, other in sorted(
            (tuple(inputs), tuple(reversed(inputs))), key=lambda pair: -order.get(pair[0], -1)
        ):
            producer = self.drafts.get(own)
            fits = (
                producer is not None
                and producer.op in ("conv2d", "linear")
                and self.uses[own] == 1
                and producer.residual is None
                and producer.activation is None
                and own != other
                and self.shapes[own] == self.shapes[other]
            )
            if fits:
                assert producer is not None
                producer.residual = other
                self._rename(producer, node.name)
                return True
        return False

    def _adaptive(self, node: Node, source: str) -> None:
        """An adaptive pool whose windows are all equal is an average pool."""
        height, width = self.shapes[node.inputs[0]][2:]
        rows, columns = node.attrs["size"]
        if height % rows or width % columns:
            call: dict[str, Any] = {
                "target": "aten.adaptive_avg_pool2d.default",
                "args": [{"value": source}, [rows, columns]],
                "kwargs": {},
                "item": None,
            }
            self._add(_Draft(node.name, "aten", [source], node.name, call))
            return
        kernel = (height // rows, width // columns)
        if kernel == (1, 1) and node.name != self.graph.output:
            self.alias[node.name] = source
            self.uses[source] += self.uses[node.name] - 1
            return
        attrs = {
            "kernel": kernel,
            "stride": kernel,
            "padding": (0, 0),
            "ceil_mode": False,
            "count_include_pad": True,
            "divisor_override": None,
        }
        self._add(_Draft(node.name, "avg_pool2d", [source], node.name, attrs))
