"""The CPU executor against PyTorch's dense operations in float64, at awkward shapes."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from cpu_plans import attributes, check, conv_step, kernels_of, plan_of, poison, pruned, reference
from hypothesis import given, settings
from hypothesis import strategies as st

from finepruning.engine.cpu import CpuExecutor
from finepruning.engine.cpu_schedule import in_lanes
from finepruning.engine.plan import Step
from finepruning.errors import InputError
from finepruning.sparse.csr import CSR

CASES = {
    "map narrower than a vector": ((8, 13, 13), (16, 8, 3, 3), attributes(padding=1)),
    "rows cut by the edge": ((3, 33, 17), (5, 3, 7, 7), attributes(2, 3)),
    "stride 4": ((3, 40, 41), (8, 3, 11, 11), attributes(4, 2)),
    "groups": ((8, 7, 7), (12, 4, 3, 3), attributes(padding=1, groups=2)),
    "depthwise": ((8, 9, 9), (8, 1, 3, 3), attributes(padding=1, groups=8)),
    "dilation": ((4, 15, 12), (6, 4, 3, 3), attributes(padding=2, dilation=2)),
    "stride and dilation": ((4, 20, 21), (6, 4, 3, 3), attributes(2, 3, 3)),
    "kernel and padding not square": ((4, 20, 9), (6, 4, 1, 5), attributes((2, 1), (0, 2))),
    "pointwise": ((40, 14, 14), (24, 40, 1, 1), attributes()),
    "pointwise, stride 2": ((16, 7, 7), (24, 16, 1, 1), attributes(2)),
    "one pixel": ((5, 1, 1), (7, 5, 1, 1), attributes()),
    "map of one pixel, padded": ((5, 1, 1), (7, 5, 3, 3), attributes(padding=1)),
    "blocks of channels": ((150, 6, 10), (9, 150, 3, 3), attributes(padding=1)),
    "result beyond the second-level cache": ((3, 61, 60), (64, 3, 3, 3), attributes(padding=1)),
}


@pytest.mark.parametrize("batch", [1, 3, 16, 17])
@pytest.mark.parametrize("case", CASES)
def test_convolution_equals_the_dense_one(isa: str, case: str, batch: int) -> None:
    size, shape, attrs = CASES[case]
    weight, bias = pruned(shape, 0.3), torch.linspace(-1, 1, shape[0])
    weight[0] = 0  # an empty row
    x = torch.randn(batch, *size, generator=torch.Generator().manual_seed(1))
    expected = reference(x, weight, bias, attrs).relu()
    plan = plan_of([conv_step(weight, bias, attrs, activation="relu")], {"x": x.shape, "y": expected.shape})
    executor = CpuExecutor(plan)
    assert executor.report()[0].kernel.endswith(f"_{kernels_of(isa, lanes=in_lanes(batch))}")
    check(executor, x, expected)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_convolution_over_random_geometry(data: st.DataObject) -> None:
    draw = data.draw
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, outputs = groups * draw(st.integers(1, 6)), groups * draw(st.integers(1, 5))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride, dilation = draw(st.tuples(st.integers(1, 4), st.integers(1, 4))), draw(st.integers(1, 3))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    least = [max(1, dilation * (k - 1) + 1 - 2 * p) for k, p in zip(kernel, padding, strict=True)]
    size = [low + draw(st.integers(0, 30)) for low in least]
    batch = draw(st.sampled_from([1, 2, 12, 18]))
    density = draw(st.sampled_from([0.0, 0.05, 0.5]))
    weight = pruned((outputs, channels // groups, *kernel), density, draw(st.integers(0, 99)))
    attrs = attributes(stride, padding, dilation, groups)
    x = torch.randn(batch, channels, *size)
    expected = reference(x, weight, None, attrs)
    shapes = {"x": x.shape, "y": expected.shape}
    steps = [conv_step(weight, None, attrs)]
    if draw(st.booleans()):
        other = pruned(tuple(weight.shape), density, 100)
        shapes["r"] = shapes["y"]
        steps = [
            Step("skip", "conv2d", ("x",), "r", attrs, CSR.from_dense(other)),
            conv_step(weight, None, attrs, residual="r", activation="relu6"),
        ]
        expected = (expected + reference(x, other, None, attrs)).clamp(0, 6)
    check(CpuExecutor(plan_of(steps, shapes)), x, expected)


@pytest.mark.parametrize("batch", [1, 16])
def test_all_zero_layer_and_single_weight(isa: str, batch: int) -> None:
    x, attrs, bias = torch.randn(batch, 6, 5, 5), attributes(padding=1), torch.arange(4.0)
    empty, single = torch.zeros(4, 6, 3, 3), torch.zeros(4, 6, 3, 3)
    single[2, 3, 1, 2] = 0.5
    for weight in (empty, single):
        expected = reference(x, weight, bias, attrs)
        plan = plan_of([conv_step(weight, bias, attrs)], {"x": x.shape, "y": expected.shape})
        check(CpuExecutor(plan), x, expected)


@pytest.mark.parametrize("batch", [1, 2, 16, 40, 70])
@pytest.mark.parametrize("columns", [1, 37, 300])
def test_linear(isa: str, batch: int, columns: int) -> None:
    weight, bias = pruned((50, columns), 0.2), torch.linspace(-2, 2, 50)
    x = torch.randn(batch, columns)
    expected = F.linear(x.double(), weight.double(), bias.double()).relu()
    step = Step("fc", "linear", ("x",), "y", {}, CSR.from_dense(weight), bias, activation="relu")
    check(CpuExecutor(plan_of([step], {"x": x.shape, "y": expected.shape})), x, expected)


@pytest.mark.parametrize("density", [0.0005, 0.05])
@pytest.mark.parametrize("columns", [9217, 30_001, 70_000])
def test_linear_of_more_columns_than_a_cache_holds(isa: str, columns: int, density: float) -> None:
    """They go in blocks; where positions would need more than 16 bits, rows of few weights do, too."""
    weight, bias = pruned((9, columns), density), torch.linspace(-2, 2, 9)
    weight[0] = 0  # an empty row
    weight[1, :5000] = 0.01  # all its weights in one block, and a sum whose rounding the other rows outweigh
    x = torch.randn(1, columns, generator=torch.Generator().manual_seed(1))
    expected = F.linear(x.double(), weight.double(), bias.double()).relu()
    step = Step("fc", "linear", ("x",), "y", {}, CSR.from_dense(weight), bias, activation="relu")
    check(CpuExecutor(plan_of([step], {"x": x.shape, "y": expected.shape})), x, expected)
    other = Step("skip", "linear", ("x",), "r", {}, CSR.from_dense(weight))
    step = Step("fc", "linear", ("x",), "y", {}, step.weight, bias, activation="relu", residual="r")
    expected = F.linear(2 * x.double(), weight.double(), bias.double()).relu()
    plan = plan_of([other, step], {"x": x.shape, "r": expected.shape, "y": expected.shape})
    check(CpuExecutor(plan), x, expected)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_linear_over_the_last_dimension(isa: str, batch: int) -> None:
    weight, bias = pruned((20, 30), 0.3), torch.randn(20)
    x = torch.randn(batch, 7, 30)
    expected = F.gelu(F.linear(x.double(), weight.double(), bias.double()))
    step = Step("fc", "linear", ("x",), "y", {}, CSR.from_dense(weight), bias, activation="gelu")
    check(CpuExecutor(plan_of([step], {"x": x.shape, "y": expected.shape})), x, expected)


@pytest.mark.parametrize("batch", [1, 16])
def test_residual_is_added_before_the_activation(isa: str, batch: int) -> None:
    weight, attrs = pruned((6, 6, 3, 3), 0.3), attributes(padding=1)
    x = torch.randn(batch, 6, 10, 19)
    expected = F.hardswish(reference(x, weight, None, attrs) + x.double())
    step = conv_step(weight, None, attrs, residual="x", activation="hardswish")
    check(CpuExecutor(plan_of([step], {"x": x.shape, "y": x.shape})), x, expected)


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (5, 13)])
def test_pooling_whole_maps(isa: str, size: tuple[int, int], batch: int) -> None:
    x = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))
    x[0, 1, -1, 0] = float("nan")
    attrs = {"kernel": size, "stride": (1, 1), "padding": (0, 0), "ceil_mode": False}
    mean = Step(
        "p", "avg_pool2d", ("x",), "y", {**attrs, "count_include_pad": True, "divisor_override": None}
    )
    most = Step("p", "max_pool2d", ("x",), "y", {**attrs, "dilation": (1, 1)})
    for step, expected in ((mean, x.mean((2, 3), keepdim=True)), (most, x.amax((2, 3), keepdim=True))):
        executor = CpuExecutor(plan_of([step], {"x": x.shape, "y": (batch, 3, 1, 1)}))
        poison(executor)
        torch.testing.assert_close(executor(x), expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("batch", [1, 5, 16, 18])
@pytest.mark.parametrize("size", [(5, 5), (7, 33), (17, 40)])
@pytest.mark.parametrize(("stride", "padding"), [(2, 0), (2, 1), (1, 1)])
def test_nan_survives_windows_of_3x3(
    isa: str, stride: int, padding: int, size: tuple[int, int], batch: int
) -> None:
    x = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.02] = float("nan")
    attrs = {"kernel": (3, 3), "stride": (stride, stride), "padding": (padding, padding), "ceil_mode": False}
    expected = F.max_pool2d(x, 3, stride, padding)
    step = Step("p", "max_pool2d", ("x",), "y", {**attrs, "dilation": (1, 1)})
    executor = CpuExecutor(plan_of([step], {"x": x.shape, "y": expected.shape}))
    poison(executor)
    assert torch.equal(executor(x).nan_to_num(nan=99.0), expected.nan_to_num(nan=99.0))


@pytest.mark.parametrize("width", [1, 2, 7, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65])
@pytest.mark.parametrize("stride", [2, 3])
def test_every_nth_position(isa: str, stride: int, width: int) -> None:
    x = torch.randn(1, 3, 5, width, generator=torch.Generator().manual_seed(1))
    x[0, 2, -1, -1] = float("nan")
    attrs = {"kernel": (1, 1), "stride": (stride, stride), "padding": (0, 0), "ceil_mode": False}
    expected = x[:, :, ::stride, ::stride]
    step = Step("p", "max_pool2d", ("x",), "y", {**attrs, "dilation": (1, 1)})
    executor = CpuExecutor(plan_of([step], {"x": x.shape, "y": expected.shape}))
    poison(executor)
    assert torch.equal(executor(x).nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))


@pytest.mark.parametrize("batch", [1, 5, 16, 18])
def test_every_native_map_step_in_one_network(isa: str, batch: int) -> None:
    """conv -> max pool -> (average pool, global gate) -> concat -> view -> linear, against PyTorch."""
    w1, w2 = pruned((8, 3, 3, 3), 0.5, 1), pruned((10, 16 * 36), 0.2, 2)
    x = torch.randn(batch, 3, 26, 26)
    pool = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil_mode": False}
    average = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "ceil_mode": False}
    average |= {"count_include_pad": False, "divisor_override": None}
    whole = {"kernel": (13, 13), "stride": (13, 13), "padding": (0, 0), "ceil_mode": False}
    whole |= {"count_include_pad": True, "divisor_override": None}
    second = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1), "ceil_mode": False}
    steps = [
        Step("c", "conv2d", ("x",), "c", attributes(padding=1), CSR.from_dense(w1), None, activation="relu"),
        Step("m", "max_pool2d", ("c",), "m", {**pool, "dilation": (1, 1)}),
        Step("a", "avg_pool2d", ("m",), "a", average),
        Step("g", "avg_pool2d", ("m",), "g", whole, activation="sigmoid"),
        Step("s", "mul", ("g", "m"), "s"),
        Step("t", "concat", ("a", "s"), "t", {"dim": 1}),
        Step("u", "add", ("t", "t"), "u", activation="hardsigmoid"),
        Step("p", "max_pool2d", ("u",), "p", second),
        Step("v", "view", ("p",), "v"),
        Step("f", "linear", ("v",), "f", {}, CSR.from_dense(w2)),
    ]
    c = F.conv2d(x.double(), w1.double(), padding=1).relu()
    m = F.max_pool2d(c, 3, 2, 1)
    a = F.avg_pool2d(m, 3, 1, 1, count_include_pad=False)
    g = m.mean((2, 3), keepdim=True).sigmoid()
    t = torch.cat([a, m * g], 1)
    u = F.hardsigmoid(t + t)
    p = F.max_pool2d(u, 2, 2)
    v = p.flatten(1)
    f = F.linear(v, w2.double())
    named = {"x": x, "c": c, "m": m, "a": a, "g": g, "s": m, "t": t, "u": u, "p": p, "v": v, "f": f}
    executor = CpuExecutor(plan_of(steps, {name: tuple(value.shape) for name, value in named.items()}))
    assert "aten" not in {row.kernel for row in executor.report()}
    check(executor, x, f)


@pytest.mark.parametrize("batch", [1, 16])
def test_steps_without_a_kernel_run_through_pytorch(batch: int) -> None:
    weight = pruned((6, 4, 3, 3), 0.3)
    x = torch.randn(batch, 4, 8, 9)
    steps = [
        Step("c", "conv2d", ("x",), "c", attributes(padding=1), CSR.from_dense(weight)),
        Step(
            "p",
            "aten",
            ("c",),
            "p",
            {"target": "aten.permute.default", "args": [{"value": "c"}, [0, 2, 3, 1]], "kwargs": {}},
        ),
        Step("v", "view", ("p",), "v"),
        Step("r", "identity", ("v",), "r", activation="relu"),
    ]
    expected = F.conv2d(x, weight, padding=1).permute(0, 2, 3, 1).reshape(batch, 72, 6).relu()
    shapes = {
        "x": x.shape,
        "c": (batch, 6, 8, 9),
        "p": (batch, 8, 9, 6),
        "v": (batch, 72, 6),
        "r": (batch, 72, 6),
    }
    executor = CpuExecutor(plan_of(steps, shapes))
    assert [row.kernel for row in executor.report()][1] == "aten"
    check(executor, x, expected)


@pytest.mark.parametrize("batch", [2, 16])
@pytest.mark.parametrize("form", ["channels_last", "strided", "transposed"])
def test_input_of_any_strides(batch: int, form: str) -> None:
    weight, attrs = pruned((6, 4, 3, 3), 0.3), attributes(padding=1)
    x = torch.randn(batch, 4, 9, 9)
    given_x = {
        "channels_last": x.to(memory_format=torch.channels_last),
        "strided": torch.stack([x, x], -1)[..., 0],
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }[form]
    expected = reference(x, weight, None, attrs)
    check(
        CpuExecutor(plan_of([conv_step(weight, None, attrs)], {"x": x.shape, "y": expected.shape})),
        given_x,
        expected,
    )


@pytest.mark.parametrize("batch", [1, 16])
def test_a_dense_layer_of_few_weights_an_output_runs_natively(batch: int) -> None:
    weight, attrs = torch.randn(6, 3, 3, 3), attributes(stride=2)
    x = torch.randn(batch, 3, 19, 19)
    expected = reference(x, weight, None, attrs)
    step = Step("conv", "conv2d", ("x",), "y", attrs, weight)
    executor = CpuExecutor(plan_of([step], {"x": x.shape, "y": expected.shape}))
    assert executor.report()[0].kernel.startswith("sparse_")
    check(executor, x, expected)


def test_weights_that_are_not_finite_stay_as_they_are() -> None:
    weight, attrs = torch.randn(6, 3, 3, 3), attributes()
    weight[2, 0, 0, 0] = float("nan")
    step = Step("conv", "conv2d", ("x",), "y", attrs, weight)
    executor = CpuExecutor(plan_of([step], {"x": (1, 3, 9, 9), "y": (1, 6, 7, 7)}))
    assert executor(torch.randn(1, 3, 9, 9))[0, 2].isnan().all()


def test_wrong_input_is_refused_with_the_shape_it_takes() -> None:
    weight = pruned((6, 4, 3, 3), 0.3)
    executor = CpuExecutor(
        plan_of([conv_step(weight, None, attributes())], {"x": (1, 4, 9, 9), "y": (1, 6, 7, 7)})
    )
    for wrong in (
        torch.zeros(2, 4, 9, 9),
        torch.zeros(1, 4, 9, 9, dtype=torch.float64),
        torch.zeros(4, 9, 9),
    ):
        with pytest.raises(InputError, match=r"\(1, 4, 9, 9\)"):
            executor(wrong)


@pytest.mark.parametrize("batch", [1, 16])
def test_concurrent_calls_do_not_mix(batch: int) -> None:
    weight, attrs = pruned((16, 8, 3, 3), 0.3), attributes(padding=1)
    shapes = {"x": (batch, 8, 20, 20), "y": (batch, 16, 20, 20)}
    executor = CpuExecutor(plan_of([conv_step(weight, None, attrs)], shapes))
    inputs = [torch.randn(shapes["x"]) for _ in range(4)]
    expected = [executor(x) for x in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            if not torch.equal(executor(inputs[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_thread_count_may_change_between_calls() -> None:
    weight, attrs = pruned((16, 8, 3, 3), 0.3), attributes(padding=1)
    x = torch.randn(1, 8, 13, 13)
    expected = reference(x, weight, None, attrs)
    executor = CpuExecutor(plan_of([conv_step(weight, None, attrs)], {"x": x.shape, "y": expected.shape}))
    before = torch.get_num_threads()
    try:
        for count in (1, 3, 2):
            torch.set_num_threads(count)
            check(executor, x, expected)
    finally:
        torch.set_num_threads(before)


def test_profile_names_every_native_step() -> None:
    weight = pruned((6, 4, 3, 3), 0.3)
    shapes = {"x": (16, 4, 9, 9), "y": (16, 6, 7, 7)}
    executor = CpuExecutor(plan_of([conv_step(weight, None, attributes())], shapes))
    rows = executor.profile(torch.randn(16, 4, 9, 9))
    assert "conv" in [name for name, _ in rows]
    assert all(seconds >= 0 for _, seconds in rows)
