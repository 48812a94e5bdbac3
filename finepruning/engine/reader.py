"""Reads an exported program node by node into a `Builder`."""

from __future__ import annotations

import operator
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from finepruning.engine.builder import Batch, Builder, Constant, Value, values_in
from finepruning.engine.lowering import LOWERINGS, Call
from finepruning.errors import CaptureError

# Where a result is made and how it is laid out is the executor's business.
_LAYOUT = ("device", "layout", "pin_memory", "memory_format", "non_blocking")


_aten: Any = torch.ops.aten
# Operations that look at a tensor's type and shape alone, and the value they fill in (None: an argument).
_FILLS: dict[Any, int | None] = {
    _aten.new_zeros.default: 0,
    _aten.new_empty.default: 0,
    _aten.zeros_like.default: 0,
    _aten.empty_like.default: 0,
    _aten.new_ones.default: 1,
    _aten.ones_like.default: 1,
    _aten.new_full.default: None,
    _aten.full_like.default: None,
}


class NeedsFunctionalError(Exception):
    """An in-place operation may be seen through another name of the same memory."""


def read(program: ExportedProgram) -> Builder:
    """The program's operations as nodes; what does not depend on the input is computed here.

    Raises:
        NeedsFunctionalError: the program must first be made functional (`run_decompositions`).
        CaptureError: the program takes or returns something other than one tensor, or fixes its batch.
    """
    return _Reader(program).run()


class _Reader:
    def __init__(self, program: ExportedProgram) -> None:
        self.nodes = list(program.graph.nodes)
        self.order = {node: index for index, node in enumerate(self.nodes)}
        self.values: dict[fx.Node, Any] = {}
        self.aliases: dict[fx.Node, fx.Node] = {}  # value -> the value whose memory it may share
        self.own: set[int] = set()  # storages of the network itself, which must never change
        self.program = program
        self.batch: Any = None
        self.builder = Builder("input")

    def run(self) -> Builder:
        self._placeholders()
        with torch.no_grad():
            for node in self.nodes:
                if node.op == "call_function":
                    self.values[node] = self._call(node)
                elif node.op == "get_attr":
                    self.values[node] = getattr(self.program.graph_module, str(node.target))
        self.builder.output = self._result()
        return self.builder

    def _placeholders(self) -> None:
        specs = self.program.graph_signature.input_specs
        holders = [node for node in self.nodes if node.op == "placeholder"]
        inputs = []
        for node, spec in zip(holders, specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                inputs.append(node)
                continue
            name = str(spec.target)
            stored = self.program.state_dict.get(name)
            if stored is None:
                stored = self.program.constants[name]
            if not isinstance(stored, Tensor):
                raise CaptureError(f"the network depends on {name}, which is no tensor")
            tensor = stored.detach().to("cpu")
            self.own.add(tensor.untyped_storage().data_ptr())
            self.values[node] = Constant(tensor, name)
        if len(inputs) != 1 or not isinstance(inputs[0].meta.get("val"), Tensor):
            raise CaptureError(f"the network must take one tensor; it takes {len(inputs)} inputs")
        extent = inputs[0].meta["val"].shape[0]
        if isinstance(extent, int) or extent.node.expr.is_number:
            raise CaptureError(
                "the network works for one batch size only; its forward must not depend on the batch size"
            )
        self.batch = extent.node.expr
        self.values[inputs[0]] = self.builder.input

    def _result(self) -> Value:
        specs = self.program.graph_signature.output_specs
        (output,) = (node for node in self.nodes if node.op == "output")
        results = [
            node
            for node, spec in zip(output.args[0], specs, strict=True)
            if spec.kind is OutputKind.USER_OUTPUT
        ]
        if len(results) != 1:
            raise CaptureError(f"the network must return one tensor; it returns {len(results)}")
        value = self.values.get(results[0]) if isinstance(results[0], fx.Node) else None
        if not isinstance(value, Value) or value == self.builder.input:
            raise CaptureError("the network's result does not depend on its input")
        return value

    def _call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            source, index = node.args
            self.aliases[node] = source  # type: ignore[assignment]
            return self.values[source][index]  # type: ignore[index]
        meta = node.meta.get("val")
        if isinstance(meta, (torch.SymInt, int)) and not isinstance(meta, bool):
            return self._extent(meta)
        if not isinstance(node.target, torch._ops.OpOverload):
            raise CaptureError(f"the network uses {node.target}, which has no ATen operation")
        if not node.target._schema.returns:  # assertions of the tracer
            return None
        arguments = self._arguments(node)
        nested = list(arguments.values())
        if _holds_batch(nested):
            return self._emit(node, arguments)
        if not any(True for _ in values_in(nested)):
            return self._compute(node)
        if node.target in _FILLS and isinstance(meta, Tensor) and not _holds_batch(self._shape(meta)):
            fill = _FILLS[node.target]
            value = arguments["fill_value"] if fill is None else fill
            return Constant(torch.full([int(extent) for extent in meta.shape], value, dtype=meta.dtype))
        return self._emit(node, arguments)

    def _compute(self, node: fx.Node) -> Any:
        """Run an operation on constants now."""
        target: Any = node.target
        written = _written(target)
        args: Any = fx.node.map_arg(node.args, self._tensor)
        kwargs = {key: item for key, item in node.kwargs.items() if key not in _LAYOUT}
        kwargs = dict(fx.node.map_arg(kwargs, self._tensor))
        for position in written:
            if args[position].untyped_storage().data_ptr() in self.own:
                raise NeedsFunctionalError
        if target is torch.ops.aten.lift_fresh_copy.default or target is torch.ops.aten.lift_fresh.default:
            result: Any = args[0].clone()
        else:
            result = target(*args, **kwargs)
        if isinstance(result, Tensor):
            first = node.args[0] if node.args else None
            unchanged = isinstance(first, fx.Node) and isinstance(self.values[first], Constant)
            if unchanged and result is self.values[first].tensor:  # type: ignore[index]
                return self.values[first]  # type: ignore[index]
            return Constant(result)
        return [Constant(item) if isinstance(item, Tensor) else item for item in result]

    def _tensor(self, node: fx.Node) -> Any:
        value = self.values[node]
        return value.tensor if isinstance(value, Constant) else value

    def _emit(self, node: fx.Node, arguments: dict[str, Any]) -> Any:
        target: Any = node.target
        schema = target._schema
        overload = target
        for position in _written(target):
            if position != 0 or not isinstance(node.args[0], fx.Node):
                raise NeedsFunctionalError
            overload = self._functional(node)
            schema = overload._schema
        may_alias = any(returned.alias_info is not None for returned in target._schema.returns)
        if (may_alias or "dropout" in schema.name) and node.args:  # dropout returns its input in evaluation
            first = node.args[0]
            if isinstance(first, fx.Node):
                self.aliases[node] = first
        meta = node.meta["val"]
        results = list(meta) if isinstance(meta, (list, tuple)) else [meta]
        tensor = next(
            (item for item in node.all_input_nodes if isinstance(item.meta.get("val"), Tensor)), None
        )
        call = Call(
            op=schema.name.split("::")[1],
            builder=self.builder,
            name=node.name,
            layer=_layer(node),
            arguments=arguments,
            input_shape=None if tensor is None else self._shape(tensor.meta["val"]),
            input_dtype=None if tensor is None else tensor.meta["val"].dtype,
            shapes=[self._shape(item) for item in results],
            dtypes=[item.dtype for item in results],
        )
        lower = LOWERINGS.get(call.op) if schema.name.startswith("aten::") else None
        value: Any = lower(call) if lower is not None else None
        if value is None:
            value = self._keep(node, overload, call, isinstance(meta, (list, tuple)))
        if overload is not target:  # later readers of the first argument must see the new value
            self.values[node.args[0]] = value  # type: ignore[index]
        return value

    def _keep(self, node: fx.Node, overload: Any, call: Call, several: bool) -> Any:
        """The ATen operation itself; one node for each of its results that is read."""
        name = str(overload)
        args = self._encode(node.args)
        kwargs = {key: self._encode(item) for key, item in node.kwargs.items() if key not in _LAYOUT}
        if not several:
            return call.aten(name, *args, **kwargs)
        read_items = {user.args[1] for user in node.users if user.target is operator.getitem}
        return [
            call.aten(name, *args, item=index, **kwargs) if index in read_items else None
            for index in range(len(call.shapes))
        ]

    def _functional(self, node: fx.Node) -> Any:
        """The functional variant of an in-place operation, if nobody else can see the memory change."""
        target: Any = node.target
        name = target._schema.name.split("::")[1]
        packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
        overload = getattr(packet, target._overloadname, None)
        changed = node.args[0]
        if overload is None or not name.endswith("_") or not isinstance(changed, fx.Node):
            raise NeedsFunctionalError
        root = self._root(changed)
        for other, place in self.order.items():
            if other is node or other is changed or place > self.order[node] or self._root(other) is not root:
                continue
            if any(self.order[user] > self.order[node] for user in other.users):
                raise NeedsFunctionalError
        return overload

    def _root(self, node: fx.Node) -> fx.Node:
        while node in self.aliases:
            node = self.aliases[node]
        return node

    def _arguments(self, node: fx.Node) -> dict[str, Any]:
        """Arguments by schema name with the schema's defaults."""
        target: Any = node.target
        bound = {}
        for index, argument in enumerate(target._schema.arguments):
            if argument.kwarg_only or index >= len(node.args):
                value = node.kwargs.get(
                    argument.name, argument.default_value if argument.has_default_value() else None
                )
            else:
                value = node.args[index]
            bound[argument.name] = self._encode(value)
        return bound

    def _encode(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.values[value]
        if isinstance(value, (list, tuple)):
            return [self._encode(item) for item in value]
        if isinstance(value, torch.SymInt):
            return self._extent(value)
        return value

    def _shape(self, tensor: Tensor) -> tuple[Any, ...]:
        return tuple(self._extent(extent) for extent in tensor.shape)

    def _extent(self, extent: Any) -> int | Batch:
        if isinstance(extent, int):
            return extent
        expression = extent.node.expr
        if expression.is_number:
            return int(expression)
        polynomial = expression.as_poly(self.batch)
        if polynomial is None or polynomial.degree() > 1 or expression.free_symbols != {self.batch}:
            raise CaptureError(
                f"a dimension depends on the batch size as {expression}; only a * batch + b can be run"
            )
        scale, offset = polynomial.coeff_monomial(self.batch), polynomial.coeff_monomial(1)
        if not (isinstance(scale, sympy.Integer) and isinstance(offset, sympy.Integer)):
            raise CaptureError(
                f"a dimension depends on the batch size as {expression}; only a * batch + b can be run"
            )
        return Batch(int(scale), int(offset))


def _written(target: Any) -> list[int]:
    """Positions of the arguments that an operation changes."""
    arguments = target._schema.arguments
    return [
        index
        for index, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def _holds_batch(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_batch(item) for item in value)
    return isinstance(value, Batch)


def _layer(node: fx.Node) -> str:
    """Path of the module that called the operation, such as "features.0"."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack.values()))[0] if stack else ""
