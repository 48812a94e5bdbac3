"""Kernel choice and memory layout of the CUDA executor: plain arithmetic, the same on every machine."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from finepruning.engine.cuda_choice import SLACK, Choice, Layer, choose
from finepruning.engine.cuda_layout import Placement, arena, placements
from finepruning.engine.cuda_roofline import H200, seconds
from finepruning.engine.plan import Plan, Step, Value
from finepruning.sparse.csr import CSR


def _linear(density: float, batch: int, itemsize: int = 2) -> Layer:
    rows, columns = 4096, 9216
    return Layer(
        "fc",
        False,
        rows,
        columns,
        int(density * rows * columns),
        1,
        batch,
        batch * columns,
        itemsize,
        False,
        True,
    )


def test_one_image_through_a_large_layer_runs_sparse():
    times = seconds(_linear(0.1, 1), H200)
    assert times["sparse"] < times["dense"] / 2
    assert choose([_linear(0.1, 1)], {"fc": times})["fc"].method == "sparse"


def test_modelled_times_grow_with_batch_and_density():
    for method in ("sparse", "dense", "expand"):
        times = [seconds(_linear(0.1, batch), H200)[method] for batch in (1, 8, 64, 256)]
        assert times == sorted(times)
    assert seconds(_linear(0.02, 16), H200)["sparse"] <= seconds(_linear(0.1, 16), H200)["sparse"]


def test_a_network_is_never_planned_slower_than_dense():
    layers = [_linear(0.1, 256)]
    times = {"fc": seconds(layers[0], H200)}
    choice = choose(layers, times)["fc"]
    assert times["fc"][choice.method] <= times["fc"]["dense"] * (1 + SLACK)
    assert choice.why_dense is not None


def test_weights_stay_sparse_while_the_network_still_gains():
    gain = Layer("gain", False, 8, 8, 4, 1, 1, 8, 4, False, True)
    loss = Layer("loss", False, 8, 8, 4, 1, 1, 8, 4, False, True)
    times = {
        "gain": {"sparse": 1.0, "expand": 9.0, "dense": 5.0},
        "loss": {"sparse": 9.0, "expand": 6.0, "dense": 5.0},
    }
    assert {name: c.method for name, c in choose([gain, loss], times).items()} == {
        "gain": "sparse",
        "loss": "expand",
    }
    times["gain"]["sparse"] = 4.5
    assert choose([gain, loss], times)["loss"].method == "dense"


def test_a_nearly_dense_layer_keeps_dense_weights():
    layer = Layer("stem", False, 8, 8, 40, 1, 1, 8, 4, False, True)
    choice = choose([layer], {"stem": {"sparse": 1.0, "expand": 1.0, "dense": 2.0}})["stem"]
    assert choice.method == "dense"
    assert "too few zeros" in choice.why_dense


def _plan(last: str = "view") -> Plan:
    csr = CSR.from_dense(torch.ones(4, 4, 3, 3))
    geometry = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    shapes = {"x": (2, 4, 6, 6), "a": (2, 4, 6, 6), "b": (2, 4, 6, 6), "c": (2, 4, 6, 6), "f": (2, 144)}
    steps = (
        Step("conv1", "conv2d", ("x",), "a", geometry, csr),
        Step("conv2", "conv2d", ("a",), "b", geometry, csr),
        Step("conv3", "conv2d", ("b",), "c", geometry, csr, residual="a"),
        Step("flat", "view", ("c",), "f", {"shape": (2, 144)})
        if last == "view"
        else Step("sum", last, ("c", "c"), "f"),
    )
    if last != "view":
        shapes["f"] = shapes["c"]
    return Plan(steps, {name: Value(name, shape) for name, shape in shapes.items()}, "x", "f")


def _choices(*methods):
    return {f"conv{i + 1}": Choice(method, {}) for i, method in enumerate(methods)}


def test_sparse_readers_decide_the_order_and_the_border():
    placed = placements(_plan(), _choices("sparse", "sparse", "dense"), "channels_last")
    assert [(p.order, p.halo) for p in (placed["x"], placed["a"])] == [("batch_innermost", 1)] * 2
    assert placed["b"].order == "channels_last"
    assert placed["f"].source == "c"
    # What a dense convolution leaves for an addition keeps its channels side by side; a view wants rows.
    assert placements(_plan("add"), _choices("sparse", "sparse", "dense"), "channels_last")["c"].order == (
        "channels_last"
    )
    assert placed["c"].order == "batch_innermost"
    dense = placements(_plan(), _choices("dense", "dense", "dense"), "contiguous")
    assert {p.order for p in dense.values()} == {"contiguous"}


def test_values_that_live_together_do_not_overlap():
    plan = _plan()
    placed = placements(plan, _choices("sparse", "sparse", "sparse"), "contiguous")
    offsets, total = arena(plan, placed, {"conv3": 576})
    size = {name: placed[name].numel * 4 for name in ("a", "b", "c")} | {"scratch:conv3": 576}
    spans = sorted((offsets[name], offsets[name] + size[name]) for name in size)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert spans[-1][1] <= total


def _network(generator: random.Random) -> Plan:
    """A random graph of convolutions, additions, views and scratch users over values that live long."""
    csr = CSR.from_dense(torch.ones(4, 4, 3, 3))
    geometry = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    values, steps = ["x"], []
    shapes: dict[str, tuple[int, ...]] = {"x": (2, 4, 5, 5)}
    for index in range(generator.randint(3, 14)):
        maps = [name for name in values if len(shapes[name]) == 4]
        name, source = f"v{index}", generator.choice(maps)
        kind = generator.choice(["conv2d", "conv2d", "add", "view", "identity"])
        shapes[name] = (2, 100) if kind == "view" else (2, 4, 5, 5)
        if kind == "conv2d":
            residual = generator.choice([None, generator.choice(maps)])
            steps.append(Step(name, kind, (source,), name, geometry, csr, residual=residual))
        else:
            inputs = (source, generator.choice(maps)) if kind == "add" else (source,)
            steps.append(Step(name, kind, inputs, name, {"shape": (2, 100)} if kind == "view" else {}))
        values.append(name)
    return Plan(tuple(steps), {name: Value(name, shape) for name, shape in shapes.items()}, "x", values[-1])


@pytest.mark.parametrize("seed", range(60))
def test_no_step_writes_over_what_a_later_one_reads(seed):
    """Executes the memory plan symbolically: every byte knows which value wrote it last."""
    generator = random.Random(seed)
    plan = _network(generator)
    methods = {s.name: Choice(generator.choice(["sparse", "expand", "dense"]), {}) for s in plan.steps}
    choices = {s.name: methods[s.name] for s in plan.steps if s.op == "conv2d"}
    placed = placements(plan, choices, generator.choice(["contiguous", "channels_last"]))
    scratch = {name: 576 for name, choice in choices.items() if choice.method == "expand"}
    offsets, total = arena(plan, placed, scratch)
    owner = ["nothing"] * total

    def span(name: str, size: int) -> slice:
        assert offsets[name] % 16 == 0
        assert offsets[name] + size <= total
        return slice(offsets[name], offsets[name] + size)

    def holder(name: str) -> str:
        return placed[name].source or name

    for step in plan.steps:
        if step.name in scratch:
            owner[span(f"scratch:{step.name}", 576)] = ["scratch"] * 576
        result = holder(step.output)
        size = placed[result].numel * 4
        if result == step.output:
            owner[span(result, size)] = [result] * size
        for name in (*step.inputs, *([step.residual] if step.residual else []), step.output):
            if holder(name) != plan.input:
                size = placed[holder(name)].numel * 4
                assert set(owner[span(holder(name), size)]) == {holder(name)}
    last = holder(plan.output)
    if last != plan.input:
        assert set(owner[span(last, placed[last].numel * 4)]) == {last}


@pytest.mark.parametrize("order", ["contiguous", "channels_last", "batch_innermost"])
def test_a_view_covers_its_memory_once(order):
    placement = Placement((3, 4, 5, 6), torch.float32, order, halo=2 if order == "batch_innermost" else 0)
    memory = torch.zeros(placement.numel)
    view = placement.view(memory)
    assert view.shape == placement.shape
    view += 1
    assert memory.sum() == view.numel()
    assert memory.max() == 1
