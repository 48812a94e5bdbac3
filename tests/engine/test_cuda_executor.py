"""How the CUDA executor uses a GPU: order of calls, buckets, threads, errors. Runs on ordinary memory."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fake_gpu import FakeGpu
from torch import nn

from finepruning.bench.networks import prune_uniform
from finepruning.engine import cuda_program
from finepruning.engine.capture import capture
from finepruning.engine.cuda import CudaExecutor
from finepruning.engine.cuda_batch import bucket
from finepruning.engine.cuda_graph import Recording
from finepruning.engine.fuse import fuse
from finepruning.engine.plan import keeps_images_apart
from finepruning.engine.reference import ReferenceExecutor
from finepruning.errors import DeviceError, InputError

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for a GPU where there is none")


def _plan(batch, network=None):
    torch.manual_seed(0)
    network = network or nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5)
    )
    prune_uniform(network, 0.3)
    graph, tensors = capture(network.eval(), (2, 4, 4))
    return fuse(graph, tensors, batch)


@pytest.fixture
def gpu(monkeypatch):
    return FakeGpu(monkeypatch)


@pytest.fixture
def executor(gpu):
    return CudaExecutor(_plan(4), "cpu", measure=False)


def test_recording_warms_up_first_and_keeps_workspaces_apart(gpu, executor):
    assert gpu.log == [
        "side waits for default",
        "launch",
        "synchronize side",
        "clear",
        "capture",
        "launch",
        "clear",
        "record on default",
    ]


def test_no_garbage_is_collected_during_a_capture(gpu):
    """It may hold another graph, whose end would spoil the capture."""
    seen = []

    def launch():
        if gpu.capturing:
            seen.append(gc.isenabled())

    assert gc.isenabled()
    Recording(torch.device("cuda", 0), launch)
    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="in the capture"):
        Recording(torch.device("cuda", 0), lambda: fail() if gpu.capturing else None)
    assert gc.isenabled()
    assert seen == [False]


def fail():
    raise RuntimeError("in the capture")


def test_a_call_waits_for_the_one_before_and_never_for_the_device(gpu, executor):
    x = torch.randn(4, 2, 4, 4)
    gpu.log.clear()
    torch.testing.assert_close(executor(x), ReferenceExecutor(_plan(4))(x))
    assert gpu.log == ["default waits for event", "replay", "record on default"]


def test_a_call_inside_a_capture_becomes_part_of_it(gpu, executor):
    x = torch.randn(4, 2, 4, 4)
    gpu.log.clear()
    gpu.capturing = True
    torch.testing.assert_close(executor(x), ReferenceExecutor(_plan(4))(x))
    assert gpu.log == []


def test_building_inside_a_capture_is_refused(gpu):
    gpu.capturing = True
    with pytest.raises(DeviceError, match="call it once with batch 4 before the capture"):
        CudaExecutor(_plan(4), "cpu", measure=False)


def test_the_last_call_is_awaited_before_memory_is_freed(gpu):
    executor = CudaExecutor(_plan(4), "cpu", measure=False)
    gpu.log.clear()
    del executor
    gc.collect()
    assert gpu.log == ["synchronize event"]


def test_the_pool_of_the_graph_counts_as_memory(executor):
    layout = cuda_program.lay_out(_plan(4), executor._choices, "channels_last")
    assert executor.arena_bytes == layout.arena_bytes + layout.input_bytes + 1024


def test_out_of_memory_says_what_was_needed(gpu, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cuda_program, "Program", full)
    with pytest.raises(DeviceError, match=r"batch 4 needs 1 MiB for weights, 1 MiB for activations.* 3 of"):
        CudaExecutor(_plan(4), "cpu", measure=False)


def test_the_result_not_fitting_says_so_and_leaves_the_executor_usable(gpu, executor, monkeypatch):
    x = torch.randn(4, 2, 4, 4)

    def full(rows):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(executor, "_result", full)
        with pytest.raises(DeviceError, match="no memory for the result"):
            executor(x)
    torch.testing.assert_close(executor(x), ReferenceExecutor(_plan(4))(x))


def test_fewer_images_are_padded(executor):
    x = torch.randn(4, 2, 4, 4)
    whole = executor(x)
    torch.testing.assert_close(executor(x[:3] * 1.0), whole[:3])
    torch.testing.assert_close(executor(x[1:2]), whole[1:2])


@pytest.mark.parametrize("shape", [(5, 2, 4, 4), (0, 2, 4, 4), (4, 2, 4, 5), (4, 2), ()])
def test_what_does_not_fit_is_refused(executor, shape):
    with pytest.raises(InputError, match="this plan takes"):
        executor(torch.zeros(shape))


def test_built_in_inference_mode_usable_outside(gpu):
    with torch.inference_mode():
        executor = CudaExecutor(_plan(2), "cpu", measure=False)
        executor(torch.zeros(2, 2, 4, 4))
    assert not executor(torch.zeros(2, 2, 4, 4)).is_inference()


def test_threads_may_share_a_model(gpu):
    # One model: the interpreter that stands in for the GPU runs one kernel at a time.
    executor, expected = CudaExecutor(_plan(2), "cpu", measure=False), ReferenceExecutor(_plan(2))
    start = threading.Barrier(4)

    def work(index):
        start.wait(10)
        x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(index))
        for _ in range(3):
            torch.testing.assert_close(executor(x), expected(x))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_weights_are_packed_once_for_all_batches_of_a_model(gpu):
    network = nn.Sequential(nn.Flatten(), nn.Linear(32, 16))
    prune_uniform(network, 0.2)
    graph, tensors = capture(network.eval(), (2, 4, 4))
    small, large = (
        CudaExecutor(fuse(graph, tensors, batch), "cpu", methods={"1": "sparse"}, measure=False)
        for batch in (1, 4)
    )
    (one,), (other,) = small._program.packed, large._program.packed
    assert one is other


@pytest.mark.parametrize(
    ("batch", "expected"),
    [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (17, 24), (33, 40), (64, 64), (65, 80), (129, 160)],
)
def test_buckets(batch, expected):
    assert bucket(batch) == expected


def test_buckets_are_few_and_waste_little():
    assert len({bucket(batch) for batch in range(1, 257)}) == 19
    assert all(batch <= bucket(batch) <= 1.25 * batch + 8 for batch in range(1, 2000))
    assert all(bucket(batch) == batch for batch in (1, 8, 16, 32, 64, 128, 256))


class _MixesRows(nn.Module):
    def forward(self, x):
        return (x - x.mean(0)).flatten(1)


def test_batches_are_padded_only_where_rows_are_known_to_be_independent():
    assert keeps_images_apart(_plan(2))
    assert not keeps_images_apart(_plan(2, _MixesRows()))
