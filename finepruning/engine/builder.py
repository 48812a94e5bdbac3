"""The graph while it is being built: mutable nodes over values and constant tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from finepruning.errors import CaptureError
from finepruning.sparse.csr import CSR
from finepruning.sparse.graph import Graph, Node
from finepruning.sparse.shapes import Stored


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that does not depend on the input; ``name`` is its parameter's or buffer's, if it is one."""

    tensor: Tensor
    name: str | None = None


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the input: the result of the node of this name, or the input itself."""

    name: str


@dataclass(frozen=True)
class Batch:
    """The integer ``scale * batch + offset``."""

    scale: int
    offset: int


@dataclass
class Emitted:
    """A node under construction. ``attrs`` may hold `Value`, `Constant` and `Batch` objects."""

    name: str
    op: str
    inputs: list[Value]
    attrs: dict[str, Any] = field(default_factory=dict)
    weight: Constant | None = None
    bias: Constant | None = None


class Builder:
    """Collects nodes in execution order and turns them into a `Graph` with its tensors."""

    def __init__(self, input_name: str) -> None:
        self.input = Value(input_name)
        self.nodes: dict[str, Emitted] = {}
        self.output = self.input

    def emit(self, name: str, op: str, inputs: list[Value], **rest: Any) -> Value:
        """Append a node; a name in use gets a numbered suffix (a layer called twice, for one)."""
        unique, number = name, 1
        while unique in self.nodes or unique == self.input.name:
            number += 1
            unique = f"{name}@{number}"
        self.nodes[unique] = Emitted(unique, op, inputs, **rest)
        return Value(unique)

    def emit_before(self, successor: str, name: str, op: str, inputs: list[Value], **rest: Any) -> Value:
        """Like `emit`, at the place just before the node ``successor``."""
        value = self.emit(name, op, inputs, **rest)
        moved = self.nodes.pop(value.name)
        after = list(self.nodes.items())
        place = next(index for index, (key, _) in enumerate(after) if key == successor)
        self.nodes = dict([*after[:place], (value.name, moved), *after[place:]])
        return value

    def replace(self, old: str, new: str) -> None:
        """Remove the node ``old``; what read its value reads that of ``new``."""
        del self.nodes[old]
        for node in self.nodes.values():
            if any(value.name == old for value in node.inputs):
                node.inputs = [Value(new) if value.name == old else value for value in node.inputs]
                node.attrs = {key: _substitute(value, old, new) for key, value in node.attrs.items()}
        if self.output.name == old:
            self.output = Value(new)

    def uses(self) -> Counter[str]:
        """How often each value is read, the graph's result included."""
        counts = Counter(value.name for node in self.nodes.values() for value in node.inputs)
        counts[self.output.name] += 1
        return counts

    def prune(self) -> None:
        """Drop nodes that the output does not depend on."""
        needed = {self.output.name}
        for name in reversed(list(self.nodes)):
            if name in needed:
                needed.update(value.name for value in self.nodes[name].inputs)
            else:
                del self.nodes[name]

    def assemble(
        self, input_shape: tuple[int, ...], dtype: torch.dtype | None
    ) -> tuple[Graph, dict[str, Stored]]:
        """The finished graph and its tensors; weights become CSR where that takes fewer bytes."""
        self.prune()
        tensors = _Tensors(dtype)
        nodes = []
        for item in self.nodes.values():
            weight = bias = None
            if item.weight is not None:
                weight = tensors.add(item.weight, f"{item.name}.weight", sparse=True)
            if item.bias is not None:
                bias = tensors.add(item.bias, f"{item.name}.bias")
            attrs = {key: _encode(value, tensors, item.name) for key, value in item.attrs.items()}
            inputs = tuple(value.name for value in item.inputs)
            nodes.append(Node(item.name, item.op, inputs, attrs, weight, bias))
        return Graph(self.input.name, input_shape, tuple(nodes), self.output.name), tensors.stored


class _Tensors:
    """Stored tensors by name; one tensor used twice is stored once."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        self.stored: dict[str, Stored] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._alive: list[Tensor] = []  # addresses identify tensors only while these exist

    def add(self, constant: Constant, default: str, sparse: bool = False) -> str:
        tensor = constant.tensor
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, sparse)
        if key in self._names:
            return self._names[key]
        name, number = constant.name or default, 1
        base = name
        while name in self.stored:
            number += 1
            name = f"{base}@{number}"
        if tensor.is_floating_point() and tensor.dtype is not torch.float32:
            raise CaptureError(
                f"{name} is {str(tensor.dtype).removeprefix('torch.')}; convert the network with .float()"
            )
        if sparse and not bool(tensor.isfinite().all()):
            raise CaptureError(f"{name} holds NaN or infinite weights")
        self._names[key] = name
        self._alive.append(tensor)
        self.stored[name] = smallest(tensor, self.dtype) if sparse else _plain(tensor)
        return name


def smallest(weight: Tensor, dtype: torch.dtype | None = None) -> Stored:
    """The weight as CSR (values in ``dtype``) if that takes fewer bytes than dense, else dense."""
    csr = CSR.from_dense(weight, dtype)
    size = torch.empty(0, dtype=dtype or weight.dtype).element_size()
    if csr.nbytes < weight.numel() * size:
        return csr
    return _plain(csr.to_dense())


def _plain(tensor: Tensor) -> Tensor:
    """A contiguous copy that shares nothing with the network."""
    return tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)


def _encode(value: Any, tensors: _Tensors, owner: str) -> Any:
    """Arguments as JSON, in the form of `finepruning.sparse.aten`."""
    if isinstance(value, Value):
        return {"value": value.name}
    if isinstance(value, Constant):
        return {"tensor": tensors.add(value, f"{owner}.constant")}
    if isinstance(value, Batch):
        return {"batch": [value.scale, value.offset]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"float": str(value)}
    if isinstance(value, Mapping):
        return {key: _encode(item, tensors, owner) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item, tensors, owner) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CaptureError(f"{owner}: the argument {value!r} cannot be written down")


def _substitute(value: Any, old: str, new: str) -> Any:
    if isinstance(value, Value):
        return Value(new) if value.name == old else value
    if isinstance(value, Mapping):
        return {key: _substitute(item, old, new) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_substitute(item, old, new) for item in value]
    return value


def values_in(value: Any) -> Iterator[Value]:
    """All `Value` objects inside nested arguments, each once, in order of appearance."""
    seen: set[str] = set()

    def walk(item: Any) -> Iterator[Value]:
        if isinstance(item, Value) and item.name not in seen:
            seen.add(item.name)
            yield item
        elif isinstance(item, Mapping):
            for part in item.values():
                yield from walk(part)
        elif isinstance(item, (list, tuple)):
            for part in item:
                yield from walk(part)

    return walk(value)
