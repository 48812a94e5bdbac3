"""Weights stored in 16 bits on the CPU: float32 arithmetic on exactly the stored values, in fewer bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cpu_plans import ISAS, attributes, check, plan_of, pruned, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from finepruning import SparseModel, _core
from finepruning.engine.cpu import CpuExecutor
from finepruning.engine.plan import Step
from finepruning.sparse.csr import CSR

HALVES = [torch.bfloat16, torch.float16]


def stored(weight: Tensor, dtype: torch.dtype) -> tuple[CSR, Tensor]:
    """The weight as CSR of ``dtype``, and what that holds in float64."""
    csr = CSR.from_dense(weight.to(dtype))
    assert csr.values.dtype is dtype
    return csr, csr.to_dense().double()


def linear_step(csr: CSR, bias: Tensor) -> Step:
    return Step("fc", "linear", ("x",), "y", {}, csr, bias, activation="relu")


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_convolution(data: st.DataObject) -> None:
    draw = data.draw
    groups = draw(st.sampled_from([1, 1, 2]))
    channels, outputs = groups * draw(st.integers(1, 40)), groups * draw(st.integers(1, 70))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    size = [k + draw(st.integers(0, 20)) for k in kernel]
    batch = draw(st.sampled_from([1, 2, 17]))
    density = draw(st.sampled_from([0.0, 0.05, 0.4]))
    weight = pruned((outputs, channels // groups, *kernel), density, draw(st.integers(0, 99)))
    csr, exact = stored(weight, draw(st.sampled_from(HALVES)))
    attrs = attributes(stride, padding, 1, groups)
    x = torch.randn(batch, channels, *size)
    expected = reference(x, exact, None, attrs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINEPRUNING_ISA", draw(st.sampled_from(ISAS)))
        step = Step("conv", "conv2d", ("x",), "y", attrs, csr)
        check(CpuExecutor(plan_of([step], {"x": x.shape, "y": expected.shape})), x, expected)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_fully_connected(data: st.DataObject) -> None:
    draw = data.draw
    columns = draw(st.one_of(st.integers(1, 80), st.just(3000), st.just(10_000)))
    # 3000: rows longer than the scratch; 10,000: inputs in blocks
    rows, batch = draw(st.integers(1, 60)), draw(st.sampled_from([1, 2, 16, 40]))
    weight = pruned((rows, columns), draw(st.sampled_from([0.0, 0.1, 0.59])), draw(st.integers(0, 99)))
    csr, exact = stored(weight, draw(st.sampled_from(HALVES)))
    bias, x = torch.linspace(-1, 1, rows), torch.randn(batch, columns)
    expected = F.linear(x.double(), exact, bias.double()).relu()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINEPRUNING_ISA", draw(st.sampled_from(ISAS)))
        executor = CpuExecutor(plan_of([linear_step(csr, bias)], {"x": x.shape, "y": expected.shape}))
        check(executor, x, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", HALVES)
def test_every_value_expands_exactly(isa: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight an output, all finite values of the type: the result is the weight."""
    monkeypatch.setenv("FINEPRUNING_ISA", isa)
    bits = torch.arange(1, 1 << 15, dtype=torch.int32).to(torch.int16)
    values = torch.cat([bits.view(dtype), -bits.view(dtype)])
    values = values[values.isfinite()]
    if dtype is torch.bfloat16:  # subnormal in float32 too: dropped before they reach a kernel
        values = values[values.float().abs() >= torch.finfo(torch.float32).tiny]
    rows = len(values)
    csr = CSR(
        values, torch.zeros(rows, dtype=torch.int32), torch.arange(rows + 1, dtype=torch.int32), (rows, 1)
    )
    for batch in (1, 16):
        step = Step("fc", "linear", ("x",), "y", {}, csr)
        executor = CpuExecutor(plan_of([step], {"x": (batch, 1), "y": (batch, rows)}))
        result = executor(torch.ones(batch, 1))
        assert torch.equal(result, values.float().expand(batch, rows))


@pytest.mark.parametrize("dtype", HALVES)
def test_a_model_in_16_bits_takes_and_returns_float32_and_packs_two_bytes_a_value(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 64, 100))
    with torch.no_grad():
        for layer in (net[0], net[3]):
            layer.weight.copy_(pruned(tuple(layer.weight.shape), 0.2))
    wide = SparseModel.from_dense(net.eval(), torch.zeros(1, 3, 8, 8))
    narrow = SparseModel.from_dense(net, torch.zeros(1, 3, 8, 8), dtype=dtype)
    with torch.no_grad():
        for layer in (net[0], net[3]):
            layer.weight.copy_(layer.weight.to(dtype).float())
    for batch in (1, 3, 16):
        x = torch.randn(batch, 3, 8, 8)
        result = narrow(x)
        assert result.dtype is torch.float32
        assert torch.allclose(result, net(x), rtol=1e-4, atol=1e-4)
        for step, other in zip(narrow.plan(batch), wide.plan(batch), strict=True):
            assert step.kernel == other.kernel
            if step.nnz is not None:
                # Tile kernels read up to eight values beyond the last nonzero.
                assert other.bytes - 6 * other.nnz - (step.bytes - 4 * step.nnz) in (0, 2 * 8)


@pytest.mark.parametrize(
    ("value", "values"),
    [
        (np.ones(1, np.float32), "bfloat16"),
        (np.ones(1, np.uint16), "float32"),
        (np.ones(1, np.float16), "float16"),
        (np.ones(1, np.float32), "float64"),
        (np.ones(4, np.uint16)[::2], "float16"),
    ],
)
def test_values_must_be_of_the_type_named(value: np.ndarray, values: str) -> None:  # type: ignore[type-arg]
    program = _core.Program(32)
    source, target = program.buffer("arena", 0, 1), program.buffer("arena", 16, 1)
    column, rowptr = np.zeros(1, np.int32), np.array([0, 1], np.int32)
    with pytest.raises(ValueError, match="values must be"):
        program.gather_linear(source, target, value, column, rowptr, columns=1, images=1, values=values)
