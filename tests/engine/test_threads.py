"""One pool of threads in the process, PyTorch's, whose size the kernels follow; no GIL while they compute."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from finepruning import SparseModel

ALONE = """
import os, threadpoolctl, time, torch
from torch import nn
from finepruning import SparseModel

def native_threads(expected):
    # A thread that leaves the pool ends in its own time.
    end = time.monotonic() + 10
    while (count := len(os.listdir("/proc/self/task"))) != expected and time.monotonic() < end:
        time.sleep(0.01)
    return count

net = nn.Sequential(nn.Conv2d(8, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
for layer in (net[0], net[2]):
    layer.weight.data *= torch.rand_like(layer.weight) < 0.1
model = SparseModel.from_dense(net.eval(), torch.zeros(1, 8, 32, 32))
x = torch.randn(4, 8, 32, 32)
torch.set_num_threads(1)
model(x)
alone = len(os.listdir("/proc/self/task"))
model(x)
print("one", native_threads(alone) - alone)
for count in (4, 2, 3):
    torch.set_num_threads(count)  # after the plan was made
    model(x)
    print("grown", count, native_threads(alone + count - 1) - alone)
net(x)
with threadpoolctl.threadpool_limits(2, user_api="openmp"):
    pass
pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "openmp"]
print("pools", len(pools))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux lists them")
def test_kernels_share_the_pool_of_pytorch_and_follow_its_size() -> None:
    pytest.importorskip("threadpoolctl")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # nothing has made a pool before
    done = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, check=True, env=environment
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["one", "0"]  # the calling thread alone
    # A pool shrinks by itself when a smaller team runs, and grows again.
    assert lines[1:4] == [["grown", "4", "3"], ["grown", "2", "1"], ["grown", "3", "2"]]
    assert lines[4] == ["pools", "1"]


@pytest.fixture(scope="module")
def model() -> SparseModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 256, 10))
    for layer in (net[0], net[3]):
        layer.weight.data *= torch.rand_like(layer.weight) < 0.1
    return SparseModel.from_dense(net.eval(), torch.zeros(1, 3, 16, 16))


def test_native_steps_run_without_the_gil(model: SparseModel) -> None:
    """With no switching by time, another thread only gets its turn while the kernels compute."""
    executor = model._executor(4)
    program = executor._runner.built.program  # type: ignore[attr-defined]
    context = program.acquire(1)
    x, y = np.zeros(4 * 3 * 256, np.float32), np.zeros(4 * 10, np.float32)
    gate, ran = threading.Semaphore(0), threading.Event()

    def other() -> None:
        gate.acquire()
        ran.set()

    thread = threading.Thread(target=other)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        gate.release()
        for _ in range(20000):
            program.run(context, 0, len(program), x, y)
            if ran.is_set():
                break
        turned = ran.is_set()
    finally:
        sys.setswitchinterval(interval)
        thread.join()
        program.release(context)
    assert turned


def test_one_model_serves_several_python_threads_at_once(model: SparseModel) -> None:
    """Several batch sizes, whose plans are made while others compute."""
    inputs = [torch.randn(1 + index % 5, 3, 16, 16) for index in range(12)]
    copy = SparseModel(model._stored)
    expected = [model(x) for x in inputs]
    results: dict[int, list[torch.Tensor]] = {}

    def work(thread: int) -> None:
        results[thread] = [copy(x) for _ in range(5) for x in inputs]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for found in results.values():
        assert all(torch.equal(a, b) for a, b in zip(found, expected * 5, strict=True))


FEWER = """
import torch
from torch import nn
from finepruning import SparseModel

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1)).eval()
for layer in (net[0], net[2]):
    layer.weight.data *= torch.rand_like(layer.weight) < 0.1
torch.set_num_threads(6)
model = SparseModel.from_dense(net, torch.zeros(1, 3, 40, 40))
x = torch.randn(1, 3, 40, 40)
torch.testing.assert_close(model(x), net(x))
"""


def test_a_team_smaller_than_asked_for_does_all_the_work() -> None:
    environment = {**os.environ, "OMP_THREAD_LIMIT": "2"}
    subprocess.run([sys.executable, "-c", FEWER], check=True, env=environment)
