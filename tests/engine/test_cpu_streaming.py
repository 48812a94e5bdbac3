"""Results beyond any cache, which kernels whose vector is a line write past the caches, against float64."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from cpu_plans import attributes, check, conv_step, plan_of, pruned, reference
from torch import Tensor

from finepruning.engine.cpu import CpuExecutor
from finepruning.engine.plan import Plan, Step

LARGE = 24 << 20  # bytes of a result, beyond which it is


class Case(NamedTuple):
    batch: int
    outputs: int
    kernel: int
    size: tuple[int, int]
    pooled: bool = False


CASES = {
    "lanes": Case(16, 33, 3, (112, 112)),
    "lanes, tiles cut by every edge": Case(16, 33, 3, (111, 115)),
    "lanes, pooled": Case(16, 17, 3, (306, 310), pooled=True),
    "rows": Case(2, 65, 3, (226, 224)),
    "rows, no whole lines": Case(2, 65, 3, (225, 227)),
    "rows, pooled": Case(2, 65, 3, (442, 450), pooled=True),
    "flat": Case(1, 520, 1, (113, 112)),
}


@cache
def planned(name: str) -> tuple[Plan, Tensor, Tensor]:
    """(plan, input, result in float32 of float64 arithmetic)."""
    case = CASES[name]
    weight = pruned((case.outputs, 1, case.kernel, case.kernel), 0.4)
    bias, attrs = torch.linspace(-1, 1, case.outputs), attributes(padding=case.kernel // 2)
    x = torch.randn(case.batch, 1, *case.size, generator=torch.Generator().manual_seed(1))
    expected = reference(x, weight, bias, attrs).relu_()
    steps = [conv_step(weight, bias, attrs, activation="relu")]
    shapes = {"x": tuple(x.shape), "y": tuple(expected.shape)}
    if case.pooled:
        pool = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1), "ceil_mode": False}
        steps.append(Step("pool", "max_pool2d", ("y",), "z", pool))
        expected = F.max_pool2d(expected, 2)
        shapes["z"] = tuple(expected.shape)
    assert expected.numel() * 4 > LARGE
    return plan_of(steps, shapes), x, expected.float()


@pytest.mark.parametrize("name", CASES)
def test_results_beyond_the_caches(isa: str, name: str) -> None:
    plan, x, expected = planned(name)
    check(CpuExecutor(plan), x, expected)
