"""Seeded mutations of plans and of inputs, and the judgement on what comes of them.

The suite runs a share of these cases; benchmarks/loader_fuzz.py runs as many as asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finepruning.engine import SparseModel
from finepruning.engine.capture import capture
from finepruning.engine.fuse import fuse
from finepruning.engine.model import make_executor
from finepruning.engine.plan import Plan, Step, Value
from finepruning.engine.reference import ReferenceExecutor
from finepruning.errors import FinepruningError
from finepruning.sparse.csr import CSR
from finepruning.sparse.graph import product

RUN_LIMIT = 1 << 21  # elements of all values of a plan that is run
SHAPE = (3, 12, 8)

NUMBERS = (
    -1,
    0,
    1,
    2,
    3,
    4,
    5,
    8,
    16,
    17,
    1 << 10,
    1 << 20,
    1 << 31,
    1 << 63,
    1.0,
    None,
    True,
    "x",
    (1, 1),
    (0, 2),
)


class Network(nn.Module):
    """Sparse, dense and grouped layers, every fused and unfused operation, and PyTorch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.gate = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8), nn.Conv2d(8, 8, 1)
        self.wide, self.mix, self.head = nn.Conv2d(16, 8, 2, groups=4), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.stem(x)))
        y = F.hardswish(self.deep(x)) + x
        y = y * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(y, 1)))
        y = torch.cat([F.max_pool2d(y, 3, 2, ceil_mode=True), F.avg_pool2d(F.gelu(y), 2)], 1)
        tokens = F.silu(self.wide(y)).flatten(2).permute(0, 2, 1)
        return self.head((tokens + self.mix(tokens)).relu().mean(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    module = Network().eval()
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.weight *= torch.rand_like(layer.weight) < 0.3
    return module


def mutate_plan(chance: random.Random, plan: Plan) -> Plan:
    """One to three fields of steps, values or the plan itself replaced by others'."""
    steps, values = list(plan.steps), dict(plan.values)
    for _ in range(chance.choice((1, 1, 2, 3))):
        action, index = chance.randrange(10), chance.randrange(len(steps))
        step, other = steps[index], chance.choice(steps)
        if action == 0:
            other_index = steps.index(other)
            steps[index], steps[other_index] = steps[other_index], steps[index]
        elif action == 1:
            del steps[index]
            if not steps:
                return replace(plan, steps=())
        elif action == 2:
            steps.insert(index, step)
        elif action == 3:
            name = chance.choice(list(values))
            shape = list(values[name].shape)
            shape[chance.randrange(len(shape))] = chance.choice(NUMBERS)  # type: ignore[call-overload]
            dtype = chance.choice((torch.float32, torch.float32, torch.float16, torch.int64))
            values[name] = Value(name, tuple(shape), dtype)
        elif action == 4:
            values.pop(chance.choice(list(values)))
            if not values:
                break
        else:
            steps[index] = _mutate_step(chance, step, other, list(values))
    output = plan.output if chance.random() < 0.95 else chance.choice([*values, "nothing"])
    return replace(plan, steps=tuple(steps), values=values, output=output)


def _mutate_step(chance: random.Random, step: Step, other: Step, names: list[str]) -> Step:
    field = chance.choice(
        ("op", "inputs", "output", "attrs", "attrs", "attrs", "weight", "bias", "residual", "act")
    )
    if field == "attrs":
        attrs: dict[str, Any] = dict(step.attrs)
        if not attrs or chance.random() < 0.1:
            return replace(step, attrs=other.attrs)
        key = chance.choice(list(attrs))
        if isinstance(attrs[key], (tuple, list)) and attrs[key] and chance.random() < 0.7:
            items = list(attrs[key])
            items[chance.randrange(len(items))] = chance.choice(NUMBERS)
            attrs[key] = type(attrs[key])(items)
        elif chance.random() < 0.2:
            del attrs[key]
        else:
            attrs[key] = chance.choice((*NUMBERS, *other.attrs.values()))
        return replace(step, attrs=attrs)
    if field == "inputs":
        return replace(step, inputs=tuple(chance.choices(names, k=chance.randint(0, 3))))
    if field == "act":
        kinds = (None, "relu", "relu6", "hardswish", "gelu", "softmax", 3)
        return replace(step, activation=chance.choice(kinds))  # type: ignore[arg-type]
    if field == "residual":
        return replace(step, residual=chance.choice((None, "nothing", *names)))
    if field == "output":
        return replace(step, output=chance.choice((*names, "nothing")))
    return replace(step, **{field: getattr(other, field)})


def judge_plan(plan: Plan) -> str:
    """ "refused" with a typed error, or the reference's result."""
    try:
        executor = make_executor(plan, torch.device("cpu"))
    except FinepruningError:
        return "refused"
    size = sum(product(value.shape) for value in plan.values.values())
    weights = (step.weight for step in plan.steps if step.weight is not None)
    size += sum(product(weight.shape) for weight in weights)
    if size > RUN_LIMIT:
        return "accepted"
    source = plan.values[plan.input]
    x = torch.randn(source.shape, generator=torch.Generator().manual_seed(0)).to(source.dtype)
    actual = executor(x)
    expected = ReferenceExecutor(plan)(x)
    assert actual.dtype is expected.dtype
    if bool(expected.isfinite().all()):
        torch.testing.assert_close(
            actual, expected, rtol=1e-3, atol=1e-3 * max(1e-3, float(expected.abs().max()))
        )
    return "accepted, run"


Case = Callable[[random.Random, int], tuple[str, str]]


def plan_case() -> Case:
    """Mutates the plan of a small network for batch 1, 3 or 17."""
    graph, tensors = capture(network(), SHAPE)
    assert any(isinstance(stored, CSR) for stored in tensors.values())
    plans = {batch: fuse(graph, tensors, batch) for batch in (1, 3, 17)}

    def run(chance: random.Random, case: int) -> tuple[str, str]:
        batch = chance.choice(list(plans))
        return f"batch {batch}", judge_plan(mutate_plan(chance, plans[batch]))

    return run


def make_input(chance: random.Random) -> Any:
    """Something to call a model with: most often a float tensor whose shape, strides or content are odd."""
    shape = [chance.choice((1, 1, 2, 3, 15, 16, 17, 0)), *SHAPE]
    kind = chance.randrange(14)
    if kind == 0:
        shape[chance.randrange(4)] = chance.choice((0, 1, 2, 7, 100))
    elif kind == 1:
        shape = shape[: chance.randrange(4)] + [chance.randint(1, 4)] * chance.randrange(4)
    elif kind == 2:
        return chance.choice(
            (None, 1.0, "x", [1.0], {"x": 1}, torch.zeros(shape).numpy(), [torch.zeros(shape)])
        )
    x = torch.randn(shape, generator=torch.Generator().manual_seed(chance.randrange(1000)))
    if kind == 3:
        names = ("float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool", "complex64")
        return x.to(getattr(torch, chance.choice(names)))
    if kind == 4:
        return x.to("meta")
    if kind == 5:
        return chance.choice((torch.Tensor.to_sparse, torch.Tensor.requires_grad_, nn.Parameter))(x)
    if kind == 6 and x.dim() == 4:
        return chance.choice(
            (x.to(memory_format=torch.channels_last), x.flip(3).flip(3), x[:, :, :, :1].expand_as(x))
        )
    if kind == 7:
        wide = torch.randn([2 * extent + 1 for extent in shape])
        return wide[tuple(slice(1, 1 + 2 * extent, 2) for extent in shape)]
    if kind == 8 and x.numel():
        flat = x.view(-1)
        numbers = (float("nan"), float("inf"), float("-inf"), 1e-40, 3e38, -0.0)
        for _ in range(3):
            flat[chance.randrange(len(flat))] = chance.choice(numbers)
    if kind == 9:
        return torch.randn([*shape, 2])[..., 1] if shape else x
    if kind == 10:
        return torch.view_as_complex(torch.randn([*shape, 2])).conj().imag if shape else x
    return x


def judge_input(model: SparseModel, module: nn.Module, x: Any) -> str:
    """ "refused" with a typed error, or the network's own result; the input is left as it was."""
    before = x.detach().clone() if isinstance(x, Tensor) and x.device.type == "cpu" else None
    try:
        actual = model(x)
    except FinepruningError as error:
        message = str(error)
    else:
        assert before is not None
        assert torch.equal(x.detach().nan_to_num(), before.nan_to_num())
        assert actual.shape == (x.shape[0], 5)
        if x.shape[0]:
            with torch.no_grad():
                expected = module(x)
            finite = expected.isfinite()
            torch.testing.assert_close(actual[finite], expected[finite], rtol=1e-3, atol=1e-4)
        return "run"
    assert len(message.splitlines()) == 1, message
    return "refused"


def input_case() -> Case:
    """Calls one model with all kinds of things."""
    module = network()
    model = SparseModel.from_dense(module, torch.zeros(1, *SHAPE))

    def run(chance: random.Random, case: int) -> tuple[str, str]:
        x = make_input(chance)
        return type(x).__name__, judge_input(model, module, x)

    return run
