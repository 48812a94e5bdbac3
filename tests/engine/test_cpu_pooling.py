"""A convolution that pools its own result, against the two operations in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cpu_plans import attributes, check, conv_step, kernels_of, plan_of, pruned, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finepruning.engine.cpu import CpuExecutor
from finepruning.engine.cpu_schedule import in_lanes
from finepruning.engine.plan import Plan, Step


def pool_step(ceil_mode: bool = False, **more: Any) -> Step:
    attrs = {
        "kernel": (2, 2),
        "stride": (2, 2),
        "padding": (0, 0),
        "dilation": (1, 1),
        "ceil_mode": ceil_mode,
    }
    return Step("pool", "max_pool2d", ("y",), "z", attrs, **more)


def pooled(
    x: Tensor, weight: Tensor, bias: Tensor, attrs: dict[str, Any], activation: str | None = "relu"
) -> tuple[Plan, Tensor]:
    """The plan of a convolution and a pooling step, and their result."""
    between = reference(x, weight, bias, attrs)
    expected = F.max_pool2d(between.relu() if activation else between, 2)
    steps = [conv_step(weight, bias, attrs, activation=activation), pool_step()]
    return plan_of(steps, {"x": x.shape, "y": between.shape, "z": expected.shape}), expected


@pytest.mark.parametrize("batch", [1, 3, 16, 17])
@pytest.mark.parametrize("size", [(2, 2), (3, 5), (14, 14), (2, 31), (13, 28), (31, 66)])
def test_pooled_convolution_equals_the_two_steps(isa: str, size: tuple[int, int], batch: int) -> None:
    weight, bias = pruned((9, 40, 3, 3), 0.2), torch.linspace(-1, 1, 9)
    weight[0] = 0  # an empty row
    x = torch.randn(batch, 40, *size, generator=torch.Generator().manual_seed(1))
    plan, expected = pooled(x, weight, bias, attributes(padding=1))
    executor = CpuExecutor(plan)
    conv, pool = executor.report()
    # Single images may be read in runs of the flattened map, which have no windows.
    if batch >= 16 or size == (31, 66):
        assert conv.kernel.endswith(f"_pool_{kernels_of(isa, lanes=in_lanes(batch))}")
    assert (pool.kernel == "fused") == ("_pool_" in conv.kernel)
    check(executor, x, expected)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_pooled_convolution_over_random_geometry(data: st.DataObject) -> None:
    draw = data.draw
    groups = draw(st.sampled_from([1, 1, 2]))
    channels, outputs = groups * draw(st.integers(1, 9)), groups * draw(st.integers(1, 5))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    size = tuple(k + stride + draw(st.integers(0, 30)) for k in kernel)
    weight = pruned((outputs, channels // groups, *kernel), draw(st.sampled_from([0.05, 0.3, 1.0])))
    x = torch.randn(draw(st.sampled_from([1, 16])), channels, *size)
    activation = draw(st.sampled_from([None, "relu"]))
    attrs = attributes(stride, padding, 1, groups)
    plan, expected = pooled(x, weight, torch.randn(outputs), attrs, activation)
    check(CpuExecutor(plan), x, expected)


def test_what_follows_the_pooling_comes_after_it() -> None:
    weight, bias, attrs = pruned((4, 3, 3, 3), 0.5), torch.randn(4), attributes(padding=1)
    x, other = torch.randn(16, 3, 6, 6), pruned((4, 3, 1, 1), 0.5)
    between = reference(x, weight, bias, attrs)
    side = F.conv2d(x.double(), other.double(), stride=2)
    second = Step("side", "conv2d", ("x",), "r", attributes(2), conv_step(other, None, attrs).weight)
    steps = [second, conv_step(weight, bias, attrs), pool_step(residual="r", activation="relu")]
    expected = (F.max_pool2d(between, 2) + side).relu()
    shapes = {"x": x.shape, "y": between.shape, "r": side.shape, "z": expected.shape}
    check(CpuExecutor(plan_of(steps, shapes)), x, expected)


def test_a_map_that_is_read_twice_is_kept_whole() -> None:
    weight, bias, attrs = pruned((4, 3, 3, 3), 0.5), torch.randn(4), attributes(padding=1)
    x = torch.randn(16, 3, 6, 6)
    between = reference(x, weight, bias, attrs)
    small = Step("small", "max_pool2d", ("y",), "s", {**pool_step().attrs, "stride": (1, 1)})
    sizes = {"z": F.max_pool2d(between, 2), "s": F.max_pool2d(between, 2, 1)}
    last = Step("last", "conv2d", ("s",), "o", attributes(2), conv_step(weight[:, :1], None, attrs).weight)
    last.attrs["groups"] = 4
    expected = F.conv2d(sizes["s"], weight[:, :1].double(), stride=2, groups=4)
    steps = [conv_step(weight, bias, attrs), pool_step(), small, last]
    shapes = {"x": x.shape, "y": between.shape, "o": expected.shape} | {k: v.shape for k, v in sizes.items()}
    executor = CpuExecutor(plan_of(steps, shapes))
    assert "_pool_" not in executor.report()[0].kernel
    check(executor, x, expected)


def test_rounding_up_is_not_fused() -> None:
    weight, bias, attrs = pruned((4, 3, 3, 3), 0.5), torch.randn(4), attributes(padding=1)
    x = torch.randn(16, 3, 5, 5)
    between = reference(x, weight, bias, attrs)
    expected = F.max_pool2d(between, 2, ceil_mode=True)
    steps = [conv_step(weight, bias, attrs), pool_step(ceil_mode=True)]
    executor = CpuExecutor(plan_of(steps, {"x": x.shape, "y": between.shape, "z": expected.shape}))
    assert "_pool_" not in executor.report()[0].kernel
    check(executor, x, expected)


@pytest.mark.parametrize("batch", [1, 16])
def test_nan_survives_the_pooling(isa: str, batch: int) -> None:
    weight, bias = torch.ones(1, 1, 3, 1), torch.zeros(1)
    x = torch.zeros(batch, 1, 6, 32)
    x[-1, 0, 0, 4] = float("nan")
    plan, _ = pooled(x, weight, bias, attributes(), None)
    executor = CpuExecutor(plan)
    assert "_pool_" in executor.report()[0].kernel
    result = executor(x)
    assert result.isnan().sum() == 1
    assert result[-1, 0, 0, 2].isnan()
