"""Maps in bands of rows, where threads share an image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cpu_plans import attributes, check, plan_of, pruned
from hypothesis import given, settings
from hypothesis import strategies as st

from finepruning.engine.cpu import CpuExecutor
from finepruning.engine.plan import Plan, Step
from finepruning.engine.reference import ReferenceExecutor
from finepruning.sparse.csr import CSR


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Network:
    """Steps one after the other, with the shapes of their results."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.steps: list[Step] = []
        self.shapes = {"x": shape}

    def add(
        self, op: str, inputs: tuple[str, ...], shape: tuple[int, ...], attrs: dict[str, Any], **more: Any
    ) -> str:
        name = f"v{len(self.steps)}"
        self.steps.append(Step(name, op, inputs, name, attrs, **more))
        self.shapes[name] = shape
        return name

    def conv(
        self, source: str, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, **more: Any
    ) -> str:
        images, channels, *size = self.shapes[source]
        weight = pruned((outputs, channels // groups, kernel, kernel), 0.4, len(self.steps))
        padding = kernel // 2
        sides = [(n + 2 * padding - kernel) // stride + 1 for n in size]
        attrs = attributes(stride, padding, 1, groups)
        bias = torch.linspace(-1, 1, outputs)
        shape = (images, outputs, *sides)
        return self.add("conv2d", (source,), shape, attrs, weight=CSR.from_dense(weight), bias=bias, **more)

    def pool(
        self, op: str, source: str, kernel: tuple[int, int], stride: tuple[int, int], padding: int = 0
    ) -> str:
        images, channels, *size = self.shapes[source]
        sides = [(n + 2 * padding - k) // step + 1 for n, k, step in zip(size, kernel, stride, strict=True)]
        attrs: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": (padding, padding)}
        attrs |= {"ceil_mode": False, "dilation": (1, 1)}
        attrs |= {"count_include_pad": False, "divisor_override": None}
        return self.add(op, (source,), (images, channels, *sides), attrs)

    def flatten(self, source: str) -> str:
        images, *size = self.shapes[source]
        return self.add("view", (source,), (images, math.prod(size)), {"shape": (images, -1)})

    def plan(self) -> Plan:
        return plan_of(self.steps, self.shapes)


def compare(plan: Plan) -> CpuExecutor:
    executor = CpuExecutor(plan)
    x = torch.randn(plan.values["x"].shape, generator=torch.Generator().manual_seed(1))
    check(executor, x, ReferenceExecutor(plan)(x))
    return executor


def banded(executor: CpuExecutor) -> int:
    """Buffers that lie in bands."""
    return sum(buffer.bands > 1 for buffer in executor._runner.built.ids)


def conversions(executor: CpuExecutor) -> list[str]:
    return [name for name in executor._runner.built.names if name.endswith(":planar")]


def test_maps_between_convolutions_lie_in_bands(isa: str) -> None:
    net = Network((1, 4, 30, 90))
    a = net.conv("x", 8)
    b = net.conv(a, 8, activation="relu")
    c = net.conv(b, 8, residual=a)
    d = net.pool("max_pool2d", c, (3, 3), (2, 2), 1)
    net.conv(d, 8, kernel=1, stride=2)
    executor = compare(net.plan())
    assert banded(executor) == 4  # one of them twice over; what the strided convolution reads has its own
    assert conversions(executor) == []


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_threads_may_run_it(count: int) -> None:
    net = Network((1, 4, 60, 41))
    a = net.conv("x", 8)
    b = net.conv(a, 6, kernel=5, residual=None)
    net.conv(b, 8)
    plan = net.plan()
    executor = CpuExecutor(plan)
    x = torch.randn(plan.values["x"].shape)
    torch.set_num_threads(count)
    check(executor, x, ReferenceExecutor(plan)(x))


def test_alone_or_with_an_image_for_each_nothing_is_cut() -> None:
    for images, count in [(1, 1), (2, 2), (3, 2), (16, 2)]:
        torch.set_num_threads(count)
        net = Network((images, 4, 30, 41))
        net.conv(net.conv("x", 8), 8)
        assert banded(compare(net.plan())) == 0


def test_images_shared_by_several_threads(isa: str) -> None:
    torch.set_num_threads(4)
    net = Network((2, 4, 30, 41))
    a = net.conv("x", 8)
    b = net.conv(a, 8, groups=4)
    both = net.add("concat", (a, b), (2, 16, 30, 41), {"dim": 1})
    net.conv(net.add("add", (both, both), (2, 16, 30, 41), {}, activation="silu"), 4)
    assert banded(compare(net.plan())) == 4


def test_what_reads_no_bands_gets_whole_maps() -> None:
    net = Network((1, 4, 30, 41))
    a = net.conv("x", 8)
    b = net.conv(a, 8)
    flat = net.flatten(b)
    executor = compare(net.plan())
    assert banded(executor) == 1
    assert conversions(executor) == []
    # A dimension that is not the channels' takes the map apart.
    rows = net.add("concat", (a, a), (1, 8, 60, 41), {"dim": 2})
    assert flat != rows
    executor = compare(Plan(tuple(s for s in net.steps if s.output != flat), net.plan().values, "x", rows))
    assert conversions(executor) == [f"{a}:planar"]


def test_squeeze_and_excitation(isa: str) -> None:
    net = Network((1, 4, 30, 41))
    a = net.conv("x", 8)
    squeezed = net.pool("avg_pool2d", a, (30, 41), (30, 41))
    gate = net.conv(squeezed, 8, kernel=1)
    scaled = net.add("mul", (a, gate), (1, 8, 30, 41), {})
    net.conv(net.add("identity", (scaled,), (1, 8, 30, 41), {}, activation="hardswish"), 4)
    executor = compare(net.plan())
    assert banded(executor) == 3
    assert conversions(executor) == []


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_random_networks(data: st.DataObject) -> None:
    draw = data.draw
    torch.set_num_threads(draw(st.integers(2, 6)))
    size = draw(st.tuples(st.integers(4, 50), st.integers(3, 50)))
    net = Network((draw(st.sampled_from([1, 1, 1, 2])), 4, *size))
    maps = ["x"]
    for _ in range(draw(st.integers(2, 8))):
        source = draw(st.sampled_from(maps[-3:]))
        shape = net.shapes[source]
        same = [name for name in maps if net.shapes[name] == shape]
        kind = draw(st.sampled_from(["conv", "conv", "conv", "residual", "pool", "add", "mul", "concat"]))
        if kind == "conv":
            groups = draw(st.sampled_from([1, 1, 2]))
            stride = draw(st.sampled_from([1, 1, 2, 3]))
            maps.append(net.conv(source, 4, draw(st.sampled_from([1, 3, 5])), stride, groups))
        elif kind == "residual" and shape[1] == 4:
            residual = draw(st.sampled_from(same))
            maps.append(net.conv(source, 4, draw(st.sampled_from([1, 3])), residual=residual))
        elif kind == "pool" and min(shape[2:]) > 1:
            op = draw(st.sampled_from(["max_pool2d", "avg_pool2d"]))
            kernel, stride, padding = draw(st.sampled_from([(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 1, 0)]))
            maps.append(net.pool(op, source, (kernel, kernel), (stride, stride), padding))
        elif kind == "mul":
            gate = net.pool("avg_pool2d", source, shape[2:], shape[2:])
            maps.append(net.add("mul", (source, gate), shape, {}))
        elif kind == "concat":
            other = draw(st.sampled_from(same))
            joined = net.add("concat", (source, other), (shape[0], 2 * shape[1], *shape[2:]), {"dim": 1})
            maps.append(net.conv(joined, 4))
        else:
            maps.append(net.add("add", (source, draw(st.sampled_from(same))), shape, {}, activation="relu"))
    if draw(st.booleans()):
        net.flatten(maps[-1])
    compare(net.plan())
