"""Convolutions that write their result over their residual, where nothing else reads it."""

from __future__ import annotations

import pytest
import torch
from cpu_plans import attributes, check, plan_of, pruned
from hypothesis import given, settings
from hypothesis import strategies as st

from finepruning.engine import cpu as cpu_executor
from finepruning.engine.cpu import CpuExecutor
from finepruning.engine.cpu_lowering import Lowering
from finepruning.engine.cpu_schedule import Schedule
from finepruning.engine.plan import Plan, Step
from finepruning.engine.reference import ReferenceExecutor
from finepruning.sparse.csr import CSR

CHANNELS, HEIGHT, WIDTH = 6, 9, 21
MAP_BYTES = 4 * CHANNELS * HEIGHT * WIDTH


def conv(source: str, output: str, residual: str | None = None, seed: int = 0) -> Step:
    weight = CSR.from_dense(pruned((CHANNELS, CHANNELS, 3, 3), 0.3, seed))
    bias = torch.linspace(-1, 1, CHANNELS)
    return Step(
        output, "conv2d", (source,), output, attributes(padding=1), weight, bias, residual, activation="relu"
    )


def view(source: str, output: str) -> Step:
    return Step(output, "view", (source,), output, {"shape": (-1, CHANNELS, HEIGHT, WIDTH)})


def network(steps: list[Step], batch: int) -> Plan:
    names = ["x", *(step.output for step in steps)]
    return plan_of(steps, dict.fromkeys(names, (batch, CHANNELS, HEIGHT, WIDTH)))


def compare(plan: Plan, batch: int) -> CpuExecutor:
    executor = CpuExecutor(plan)
    x = torch.randn(batch, CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    check(executor, x, ReferenceExecutor(plan)(x))
    return executor


@pytest.mark.parametrize("batch", [1, 16])
def test_a_residual_that_nothing_else_reads_saves_a_map(
    isa: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block is a convolution into another map and one back into the residual."""
    steps = [conv("x", "a0")]
    for i in range(4):
        steps += [conv(f"a{i}", f"b{i}", seed=i), conv(f"b{i}", f"a{i + 1}", residual=f"a{i}", seed=i + 9)]
    plan = network([*steps, conv("a4", "end")], batch)
    executor = compare(plan, batch)
    monkeypatch.setattr(Lowering, "_replaces_residual", lambda *_: False)
    assert CpuExecutor(plan).arena_bytes - executor.arena_bytes >= batch * MAP_BYTES


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize(
    "steps",
    {
        "read by a later convolution": [
            conv("x", "a"),
            conv("a", "b"),
            conv("b", "c", residual="a"),
            conv("c", "d", residual="a", seed=3),
        ],
        "also what the convolution reads": [conv("x", "a"), conv("a", "b", residual="a"), conv("b", "c")],
        "the input of the network": [conv("x", "a"), conv("a", "b", residual="x"), conv("b", "c", "x")],
        "read later through a view": [
            conv("x", "a"),
            view("a", "v"),
            conv("a", "b"),
            conv("b", "c", residual="a"),
            conv("v", "d", residual="c"),
        ],
        "a view of what is read later": [
            conv("x", "a"),
            view("a", "v"),
            conv("a", "b"),
            conv("b", "c", residual="v"),
            conv("c", "d", residual="a"),
        ],
        "of the last step": [conv("x", "a"), conv("a", "b"), conv("b", "c", residual="a")],
    }.items(),
    ids=lambda case: case[0],
)
def test_a_residual_that_something_else_reads_stays(
    isa: str, steps: tuple[str, list[Step]], batch: int
) -> None:
    compare(network(steps[1], batch), batch)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_random_networks_of_residuals(data: st.DataObject) -> None:
    batch = data.draw(st.sampled_from([1, 3, 16]))
    steps: list[Step] = []
    values = ["x"]
    for i in range(data.draw(st.integers(2, 9))):
        source = data.draw(st.sampled_from(values))
        residual = data.draw(st.sampled_from([None, *values]))
        if data.draw(st.integers(0, 4)) == 0:
            steps.append(view(source, f"v{i}"))
        else:
            steps.append(conv(source, f"v{i}", residual, seed=i))
        values.append(f"v{i}")
    compare(network([*steps, conv(values[-1], "end")], batch), batch)


@pytest.mark.parametrize("looped", [2, 3, 4])
def test_in_a_loop_over_chunks(looped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk's residual is read by the steps after the loop, or by none."""
    steps = [
        conv("x", "a"),
        conv("a", "b"),
        conv("b", "c", residual="a"),
        conv("c", "d", residual="b"),
        conv("d", "e", residual="a"),
    ]
    monkeypatch.setattr(cpu_executor, "schedule", lambda plan, threads: Schedule(looped, 2))
    plan = network(steps, 16)
    executor = CpuExecutor(plan, lambda batch: network(steps, batch))
    x = torch.randn(16, CHANNELS, HEIGHT, WIDTH)
    check(executor, x, ReferenceExecutor(plan)(x))
