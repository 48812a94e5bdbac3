"""Batches that run as a loop over chunks of images give what they give step by step."""

from __future__ import annotations

import pytest
import torch
from cpu_plans import ISAS
from torch import Tensor, nn

from finepruning import _core
from finepruning.engine import SparseModel, cpu_slices
from finepruning.engine import cpu as cpu_executor
from finepruning.engine.cpu_schedule import Schedule, chunk_images, loopable, schedule, slices_pay
from finepruning.engine.model import make_executor
from finepruning.engine.plan import Plan
from finepruning.errors import InputError


class Mixed(nn.Module):
    """What a loop can hold: strides, pooling, a residual, a gate, a concatenation; then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, 1, 1)
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.inner = nn.Conv2d(8, 8, 3, 1, 1)
        self.gate = nn.Conv2d(8, 8, 1)
        self.side = nn.Conv2d(3, 4, 5, 2, 2)
        self.last = nn.Conv2d(12, 6, 3, 1, 0)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 2)  # taken by the convolution
        y = torch.relu(self.first(x))
        y = torch.relu(self.inner(y) + y)
        y = y * torch.sigmoid(self.gate(nn.functional.adaptive_avg_pool2d(y, 1)))
        y = torch.cat([y, self.side(x)], dim=1)
        y = self.last(nn.functional.max_pool2d(y, 3, 2, 1))
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> SparseModel:
    torch.manual_seed(0)
    module = Mixed()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data *= torch.rand_like(parameter) < 0.4
    return SparseModel.from_dense(module, torch.zeros(1, 3, 33, 29))


@pytest.mark.parametrize("batch", [4, 16])
@pytest.mark.parametrize("images", [1, 2])
def test_any_part_of_a_network_can_be_looped(
    model: SparseModel, batch: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(batch, 3, 33, 29, generator=torch.Generator().manual_seed(1))
    plan = model._plan(batch)
    monkeypatch.setattr(cpu_executor, "schedule", lambda plan, threads: Schedule())
    expected = cpu_executor.CpuExecutor(plan, model._plan)(x)
    longest = loopable(plan)
    assert longest >= 8
    for steps in range(1, longest + 1):
        chosen = Schedule(steps, images)
        monkeypatch.setattr(cpu_executor, "schedule", lambda plan, threads, chosen=chosen: chosen)
        executor = cpu_executor.CpuExecutor(plan, model._plan)
        context = executor._runner.built.program.acquire(torch.get_num_threads())
        for buffer, number in executor._runner.built.ids.items():
            if buffer.kind == "arena" and buffer.whole is None:
                executor._runner.built.program.view(context, number)[:] = float("nan")
        executor._runner.built.program.release(context)
        torch.testing.assert_close(executor(x), expected, rtol=1e-4, atol=1e-5)
        assert [row.shape for row in executor.report()] == [plan.values[s.output].shape for s in plan.steps]
        # A pool that the convolution before takes is no step of its own, unless the loop ends between them.
        fused = [row.name for row in executor.report() if row.kernel == "fused"]
        assert fused == ([] if steps == 1 else [plan.steps[1].name])
        alone = {step.name for step in plan.steps[:steps]} - set(fused)
        assert {name for name, _ in executor.profile(x)} >= alone


def test_a_network_of_maps_alone_can_be_looped_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    for parameter in module.parameters():
        parameter.data *= torch.rand_like(parameter) < 0.5
    model = SparseModel.from_dense(module, torch.zeros(1, 3, 12, 12))
    x = torch.randn(4, 3, 12, 12)
    monkeypatch.setattr(cpu_executor, "schedule", lambda plan, threads: Schedule(2, 2))
    torch.testing.assert_close(model(x), module(x), rtol=1e-4, atol=1e-5)


def wide(channels: int, size: int, batch: int) -> Plan:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, channels, 1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(),
        nn.Conv2d(channels, 4, 1),
    )
    for parameter in module.parameters():
        parameter.data *= torch.rand_like(parameter) < 0.1
    return SparseModel.from_dense(module, torch.zeros(1, 3, size, size))._plan(batch)


def test_maps_beyond_the_cache_are_looped_and_small_ones_are_not() -> None:
    large, small = schedule(wide(128, 112, 16), 2), schedule(wide(128, 14, 16), 2)
    assert large.steps >= 2
    assert large.images == 2
    assert small == Schedule()


@pytest.mark.parametrize(
    ("batch", "threads", "images"), [(16, 2, 2), (11, 2, 1), (12, 8, 6), (3, 4, 3), (1, 8, 1), (7, 7, 7)]
)
def test_chunks_divide_the_batch(batch: int, threads: int, images: int) -> None:
    assert chunk_images(batch, threads) == images


@pytest.mark.parametrize("batch", [5, 17, 32, 43])
def test_a_large_batch_runs_in_slices(
    model: SparseModel, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_slices, "slices_pay", lambda plan, part: True)
    executor = make_executor(model._plan(batch), torch.device("cpu"), model._plan)
    assert isinstance(executor, cpu_slices.SlicedExecutor)
    x = torch.randn(batch, 3, 33, 29).to(memory_format=torch.channels_last)
    expected = torch.cat([model(some) for some in x.split(11)])
    assert torch.allclose(executor(x), expected, rtol=1e-4, atol=1e-5)
    assert [row.shape[0] for row in executor.report()] == [batch] * len(executor.report())
    assert {row.name for row in executor.report() if row.nnz} <= {name for name, _ in executor.profile(x)}
    with pytest.raises(InputError, match=str(batch)):
        executor(x[:-1])


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512-split"])
def test_few_images_beyond_full_vectors_run_by_themselves(
    model: SparseModel, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isa not in ISAS:
        pytest.skip(f"this machine has no {isa}")
    monkeypatch.setenv("FINEPRUNING_ISA", isa)
    monkeypatch.setattr(cpu_slices, "slices_pay", lambda plan, part: False)
    lanes = _core.lanes()

    def parts(batch: int) -> set[str]:
        """Whether images of the batch lie side by side, one by one, or both."""
        executor = make_executor(model._plan(batch), torch.device("cpu"), model._plan)
        x = torch.randn(batch, 3, 33, 29, generator=torch.Generator().manual_seed(1))
        single = make_executor(model._plan(1), torch.device("cpu"), model._plan)
        expected = torch.cat([single(image) for image in x.split(1)])
        assert torch.allclose(executor(x), expected, rtol=1e-4, atol=1e-5)
        executors = {executor}
        if isinstance(executor, cpu_slices.SlicedExecutor):
            executors = {executor._slice, executor._rest}
        return {"lanes" if "lanes" in some.report()[0].kernel else "planar" for some in executors if some}

    assert parts(lanes + 1) == parts(3 * lanes + 1) == {"lanes", "planar"}
    assert parts(2 * lanes) == parts(2 * lanes - 1) == {"lanes"}


def test_fully_connected_layers_are_read_once() -> None:
    """Of two runs, each would read all weights."""
    layer = nn.Linear(200, 100)
    layer.weight.data *= torch.rand_like(layer.weight) < 0.1
    network = SparseModel.from_dense(nn.Sequential(nn.Flatten(), layer).eval(), torch.zeros(1, 2, 10, 10))
    batch = 2 * _core.lanes() + 1
    executor = make_executor(network._plan(batch), torch.device("cpu"), network._plan)
    assert not isinstance(executor, cpu_slices.SlicedExecutor)


def test_slices_pay_where_maps_leave_the_cache_and_weights_are_few() -> None:
    def pays(channels: int, outputs: int) -> bool:
        net = nn.Sequential(nn.Conv2d(3, channels, 1), nn.Flatten(), nn.Linear(channels * 64 * 64, outputs))
        for layer in (net[0], net[2]):
            layer.weight.data *= torch.rand_like(layer.weight) < 0.1
        model = SparseModel.from_dense(net.eval(), torch.zeros(1, 3, 64, 64))
        return slices_pay(model._plan(64), model._plan(16))

    assert pays(64, 1)
    assert not pays(4, 1)  # the maps of all 64 images fit
    assert not pays(64, 400)
