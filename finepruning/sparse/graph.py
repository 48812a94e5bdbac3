"""The stored graph: operations over named values, as dataclasses and as JSON.

Shapes are those of one image (no batch dimension); a batch of any size runs through the same graph. The
meaning of each operation and attribute is specified in docs/file-format.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finepruning.errors import ModelFileError

ACTIVATIONS = ("relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid", "gelu")
MAX_NODES = 20_000
MAX_NAME = 200
MAX_EXTENT = 1 << 20  # largest kernel, stride, padding, dilation, group count or dimension


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        name: unique; also the name of the value it produces.
        op: a key of `OPS`.
        inputs: names of values produced by earlier nodes, or of the graph's input.
        attrs: JSON attributes, exactly those that `OPS` lists for the operation.
        weight, bias: names of stored tensors, or None.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    weight: str | None = None
    bias: str | None = None


@dataclass(frozen=True)
class Graph:
    """Nodes in execution order.

    Attributes:
        input: name of the input value. input_shape: its shape without batch, such as ``(3, 224, 224)``.
        nodes: each reads only what came before it. output: name of the value that the graph returns.
    """

    input: str
    input_shape: tuple[int, ...]
    nodes: tuple[Node, ...]
    output: str

    def tensor_names(self) -> set[str]:
        """Names of all stored tensors that the nodes refer to."""
        names = {name for node in self.nodes for name in (node.weight, node.bias) if name is not None}
        for node in self.nodes:
            if node.op == "aten":
                names.update(references(node.attrs, "tensor"))
        return names


def references(attrs: Mapping[str, Any], kind: str) -> list[str]:
    """Names in the arguments of an "aten" node that are wrapped as ``{kind: name}``, in order."""
    # A keyword argument may itself be called "value" or "tensor", so kwargs is no wrapped object.
    return _wrapped([attrs["args"], list(attrs["kwargs"].values())], kind)


def _wrapped(value: Any, kind: str) -> list[str]:
    if isinstance(value, Mapping):
        return [value[kind]] if kind in value else []
    if isinstance(value, (list, tuple)):
        return [name for item in value for name in _wrapped(item, kind)]
    return []


@dataclass(frozen=True)
class Rule:
    """What an attribute must be: ``text`` for people, ``holds`` for the check."""

    text: str
    holds: Callable[[Any], bool]


def is_int(value: Any, low: int, high: int) -> bool:
    """Whether ``value`` is an integer (no bool) in ``[low, high]``."""
    return type(value) is int and low <= value <= high


def _integer(low: int, high: int = MAX_EXTENT) -> Rule:
    return Rule(f"an integer from {low} to {high}", lambda v: is_int(v, low, high))


def _pair(low: int, high: int = MAX_EXTENT) -> Rule:
    def holds(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 2 and all(is_int(v, low, high) for v in value)

    return Rule(f"two integers from {low} to {high}", holds)


def _is_extent(value: Any) -> bool:
    if isinstance(value, dict):
        form = value.get("batch")
        return (
            len(value) == 1
            and isinstance(form, list)
            and len(form) == 2
            and (all(is_int(v, -MAX_EXTENT, MAX_EXTENT) for v in form))
        )
    return is_int(value, -1, 1 << 31)


_BOOL = Rule("true or false", lambda v: type(v) is bool)
_DIVISOR = Rule("null or a positive integer", lambda v: v is None or is_int(v, 1, 1 << 31))
_SHAPE = Rule(
    'up to 8 entries, each an integer >= -1 or {"batch": [a, b]}',
    lambda v: isinstance(v, list) and len(v) <= 8 and all(_is_extent(item) for item in v),
)
_POOL = {"kernel": _pair(1), "stride": _pair(1), "padding": _pair(0), "ceil_mode": _BOOL}


@dataclass(frozen=True)
class OpSpec:
    """What a node of one operation must hold; ``inputs`` are the least and greatest number of inputs."""

    inputs: tuple[int, int]
    attrs: Mapping[str, Rule] = field(default_factory=dict)
    weighted: bool = False


OPS: dict[str, OpSpec] = {
    "conv2d": OpSpec(
        (1, 1),
        {"stride": _pair(1), "padding": _pair(0), "dilation": _pair(1), "groups": _integer(1)},
        weighted=True,
    ),
    "linear": OpSpec((1, 1), weighted=True),
    "max_pool2d": OpSpec((1, 1), {**_POOL, "dilation": _pair(1)}),
    "avg_pool2d": OpSpec((1, 1), {**_POOL, "count_include_pad": _BOOL, "divisor_override": _DIVISOR}),
    "adaptive_avg_pool2d": OpSpec((1, 1), {"size": _pair(1)}),
    "activation": OpSpec(
        (1, 1), {"kind": Rule("one of " + ", ".join(ACTIVATIONS), lambda v: v in ACTIVATIONS)}
    ),
    "add": OpSpec((2, 2)),
    "mul": OpSpec((2, 2)),
    "concat": OpSpec((1, 4096), {"dim": _integer(-8, 7)}),
    "view": OpSpec((1, 1), {"shape": _SHAPE}),
    "aten": OpSpec(
        (0, 4096),
        {
            "target": Rule("a string", lambda v: isinstance(v, str)),
            "args": Rule("a list", lambda v: isinstance(v, list)),
            "kwargs": Rule("an object", lambda v: isinstance(v, dict)),
            "item": Rule("null or an integer from 0 to 63", lambda v: v is None or is_int(v, 0, 63)),
        },
    ),
}


def resolve(extent: Any, batch: int) -> int:
    """A dimension of a ``view``: ``{"batch": [a, b]}`` stands for ``a * batch + b``."""
    if isinstance(extent, Mapping):
        scale, offset = extent["batch"]
        return int(scale * batch + offset)
    return int(extent)


def to_json(graph: Graph) -> dict[str, Any]:
    """The JSON form of a graph: keys ``input``, ``nodes``, ``output``."""
    nodes = []
    for node in graph.nodes:
        entry: dict[str, Any] = {"name": node.name, "op": node.op, "inputs": list(node.inputs)}
        entry.update(
            (key, value) for key, value in (("weight", node.weight), ("bias", node.bias)) if value is not None
        )
        if node.attrs:
            entry["attrs"] = dict(node.attrs)
        nodes.append(entry)
    return {
        "input": {"name": graph.input, "shape": list(graph.input_shape)},
        "nodes": nodes,
        "output": graph.output,
    }


def from_json(document: Any) -> Graph:
    """Read and check the JSON form of a graph; shapes and tensors are checked by `shapes.infer`.

    Raises:
        ModelFileError: naming the key and the rule that it breaks.
    """
    graph = fields(document, "graph", {"input": dict, "nodes": list, "output": str})
    source = fields(graph["input"], "graph.input", {"name": str, "shape": list})
    name = _name(source["name"], "graph.input.name")
    shape = source["shape"]
    if not (1 <= len(shape) <= 4 and all(is_int(v, 1, MAX_EXTENT) for v in shape)):
        raise ModelFileError(
            f"config.json: graph.input.shape must be 1 to 4 integers from 1 to {MAX_EXTENT}, "
            f"not {short(shape)}"
        )
    if not 1 <= len(graph["nodes"]) <= MAX_NODES:
        raise ModelFileError(
            f"config.json: graph.nodes must hold 1 to {MAX_NODES} nodes, not {len(graph['nodes'])}"
        )
    known = {name}
    nodes = []
    for index, entry in enumerate(graph["nodes"]):
        node = _node(entry, f"graph.nodes[{index}]", known)
        known.add(node.name)
        nodes.append(node)
    if graph["output"] not in known or graph["output"] == name:
        raise ModelFileError(f"config.json: graph.output {short(graph['output'])} is not the name of a node")
    return Graph(name, tuple(shape), tuple(nodes), graph["output"])


def _node(entry: Any, where: str, known: set[str]) -> Node:
    optional = {"weight": str, "bias": str, "attrs": dict}
    read = fields(entry, where, {"name": str, "op": str, "inputs": list}, optional)
    name = _name(read["name"], f"{where}.name")
    if name in known:
        raise ModelFileError(f"config.json: {where}.name {short(name)} is used twice")
    where = f"{where} ({name})"
    spec = OPS.get(read["op"])
    if spec is None:
        raise ModelFileError(f"config.json: {where}.op {short(read['op'])} is not one of {', '.join(OPS)}")
    least, most = spec.inputs
    if not least <= len(read["inputs"]) <= most:
        raise ModelFileError(
            f"config.json: {where}.inputs must hold {least} to {most} names for {read['op']}, "
            f"not {len(read['inputs'])}"
        )
    for source in read["inputs"]:
        if not isinstance(source, str) or source not in known:
            raise ModelFileError(
                f"config.json: {where}.inputs: {short(source)} is not produced before this node"
            )
    attrs = read.get("attrs", {})
    if set(attrs) != set(spec.attrs):
        wanted = ", ".join(sorted(spec.attrs)) or "no attributes"
        raise ModelFileError(
            f"config.json: {where}.attrs must hold exactly {wanted}; found {short(sorted(attrs))}"
        )
    for key, rule in spec.attrs.items():
        if not rule.holds(attrs[key]):
            raise ModelFileError(
                f"config.json: {where}.attrs.{key} must be {rule.text}, not {short(attrs[key])}"
            )
    if spec.weighted != ("weight" in read) or ("bias" in read and not spec.weighted):
        rule_text = "needs a weight" if spec.weighted else "takes neither weight nor bias"
        raise ModelFileError(f"config.json: {where}: {read['op']} {rule_text}")
    return Node(name, read["op"], tuple(read["inputs"]), attrs, read.get("weight"), read.get("bias"))


def fields(
    value: Any, where: str, required: Mapping[str, type], optional: Mapping[str, type] | None = None
) -> dict[str, Any]:
    """``value`` as an object with exactly these keys and types, or a `ModelFileError` that says where."""
    optional = optional or {}
    if not isinstance(value, dict):
        raise ModelFileError(f"config.json: {where} must be an object, not {short(value)}")
    for key in value:
        if key not in required and key not in optional:
            raise ModelFileError(f"config.json: {where} holds an unknown key {short(key)}")
    for key, kind in {**required, **optional}.items():
        if key not in value:
            if key in required:
                raise ModelFileError(f"config.json: {where} lacks the key {key!r}")
            continue
        if kind is not object and type(value[key]) is not kind:
            raise ModelFileError(
                f"config.json: {where}.{key} must be {_KINDS[kind]}, not {short(value[key])}"
            )
    return value


_KINDS = {dict: "an object", list: "a list", str: "a string", int: "an integer"}


def _name(value: str, where: str) -> str:
    if not 1 <= len(value) <= MAX_NAME or not value.isprintable():
        raise ModelFileError(f"config.json: {where} must be 1 to {MAX_NAME} printable characters")
    return value


def short(value: Any, limit: int = 60) -> str:
    """``repr`` cut to one readable length, for error messages."""
    if isinstance(value, (list, tuple)) and len(value) > 16:
        value = [*value[:16], "..."]
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


def product(values: Sequence[int]) -> int:
    """Exact product (Python integers do not overflow)."""
    result = 1
    for value in values:
        result *= value
    return result
