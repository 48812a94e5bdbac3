"""Small plans for the CPU executor, and the check of its results."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finepruning import _core
from finepruning.engine.cpu import CpuExecutor
from finepruning.engine.plan import Plan, Step, Value
from finepruning.sparse.csr import CSR

TABLES = sorted({kernel["isa"] for kernel in _core.kernels()})
ISAS = [*TABLES, *(["avx512-split"] if "avx512" in TABLES else [])]
TOLERANCE = 1e-5


def kernels_of(isa: str, *, lanes: bool) -> str:
    """How the names of kernels end under ``isa``, for images side by side (``lanes``) or one by one."""
    if isa != "avx512-split":
        return isa
    return "avx512vl" if lanes else "avx512"


def pruned(shape: tuple[int, ...], density: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    return weight * (torch.rand(shape, generator=generator) < density)


def plan_of(steps: list[Step], shapes: dict[str, tuple[int, ...]], **more: Any) -> Plan:
    values = {name: Value(name, tuple(shape)) for name, shape in shapes.items()}
    return Plan(tuple(steps), values, "x", steps[-1].output, **more)


def poison(executor: CpuExecutor) -> None:
    """Fill the arena that the next call will use with NaN: nothing stale may reach a result."""
    program = executor._runner.built.program
    context = program.acquire(torch.get_num_threads())
    for buffer, number in executor._runner.built.ids.items():
        if buffer.kind == "arena":
            program.view(context, number)[:] = float("nan")
    program.release(context)


def check(executor: CpuExecutor, x: Tensor, expected: Tensor) -> None:
    poison(executor)
    result = executor(x)
    assert result.shape == expected.shape
    error = (result.double() - expected.double()).norm()
    assert error <= TOLERANCE * max(expected.double().norm().item(), 1e-30)


def conv_step(weight: Tensor, bias: Tensor | None, attrs: dict[str, Any], **more: Any) -> Step:
    return Step("conv", "conv2d", ("x",), "y", attrs, CSR.from_dense(weight), bias, **more)


def attributes(stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> dict[str, Any]:
    pair = [value if isinstance(value, tuple) else (value, value) for value in (stride, padding, dilation)]
    return {"stride": pair[0], "padding": pair[1], "dilation": pair[2], "groups": groups}


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, attrs: dict[str, Any]) -> Tensor:
    return F.conv2d(
        x.double(),
        weight.double(),
        None if bias is None else bias.double(),
        attrs["stride"],
        attrs["padding"],
        attrs["dilation"],
        attrs["groups"],
    )
