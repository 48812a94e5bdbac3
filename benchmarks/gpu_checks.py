"""Every CUDA path against PyTorch on the device, before anything is timed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from finepruning.bench.cuda import relative_error, tf32
from finepruning.bench.networks import prune_uniform
from finepruning.engine.capture import capture
from finepruning.engine.cuda import CudaExecutor
from finepruning.engine.cuda_choice import layers
from finepruning.engine.fuse import fuse
from finepruning.engine.plan import Plan
from finepruning.engine.reference import ReferenceExecutor

DEVICE = torch.device("cuda", 0)
LIMIT = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Operands of 10 stored bits: 2.9e-4 if rounded to nearest, 7.8e-4 if cut (emulated, random weights).
TF32_LAYER_LIMIT = 1e-3
Check = tuple[str, Callable[[], None]]


class Everything(nn.Module):
    """Strides, groups, depthwise, dilation, both pools, residual, gate, concatenation, fully connected."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, 2, 3)
        self.grouped = nn.Conv2d(32, 64, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.dilated = nn.Conv2d(64, 64, 3, padding=2, dilation=2)
        self.project = nn.Conv2d(64, 64, 1)
        self.gate = nn.Conv2d(64, 64, 1)
        self.side = nn.Conv2d(64, 32, 3, padding=1)
        self.head = nn.Sequential(nn.Linear(96 * 4, 512), nn.ReLU(), nn.Linear(512, 100))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 3, 2, 1)
        x = nn.functional.hardswish(self.depthwise(torch.relu(self.grouped(x))))
        x = torch.relu(self.dilated(x) + self.project(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = torch.cat([x, nn.functional.relu6(self.side(x))], 1)
        return self.head(torch.flatten(nn.functional.avg_pool2d(x, 8), 1))


def made(batch: int, dtype: torch.dtype = torch.float32) -> Plan:
    torch.manual_seed(0)
    network = Everything().eval()
    prune_uniform(network, 0.1)
    graph, tensors = capture(network, (3, 64, 64), dtype)
    return fuse(graph, tensors, batch, dtype)


def methods(plan: Plan, method: str) -> dict[str, str]:
    return dict.fromkeys((layer.name for layer in layers(plan)), method)


def example(plan: Plan) -> Tensor:
    value = plan.values[plan.input]
    return torch.randn(value.shape, device=DEVICE).to(value.dtype)


def agree(actual: Tensor, expected: Tensor, what: str = "", limit: float | None = None) -> None:
    error, limit = relative_error(actual, expected), limit or LIMIT[actual.dtype]
    if not error <= limit:
        raise AssertionError(f"{what}: relative error {error:.2e}, limit {limit:.0e}")


def every_method(dtype: torch.dtype, batch: int, method: str, fused: bool = False) -> None:
    plan = made(batch, dtype)
    x = example(plan)
    with tf32(False):
        executor = CudaExecutor(plan, DEVICE, methods=methods(plan, method), fused=fused)
        expected = ReferenceExecutor(plan, DEVICE)(x)
    agree(executor(x), expected, "first call")
    agree(executor(x.contiguous(memory_format=torch.channels_last)), expected, "channels_last input")
    if batch > 1:
        agree(executor(x[:1]), expected[:1], "padded batch")


def tf32_layer(method: str, fused: bool = False) -> None:
    """A single convolution with TF32 allowed: over whole networks its rounding adds up."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1)).eval()
    prune_uniform(network, 0.1, 0.1)
    graph, tensors = capture(network, (256, 14, 14), torch.float32)
    plan = fuse(graph, tensors, 8, torch.float32)
    x = example(plan)
    with tf32(False):
        expected = ReferenceExecutor(plan, DEVICE)(x)
    with tf32(True):
        executor = CudaExecutor(plan, DEVICE, methods=methods(plan, method), fused=fused)
    agree(executor(x), expected, method, TF32_LAYER_LIMIT)


def measured_choice() -> None:
    plan = made(8, torch.float16)
    x = example(plan)
    agree(CudaExecutor(plan, DEVICE)(x), ReferenceExecutor(plan, DEVICE)(x))


def threads_and_streams() -> None:
    """Two models, four threads, a stream each; cuBLAS and cuDNN workspaces must not be shared."""
    plan = made(16)
    with tf32(False):
        executors = [CudaExecutor(plan, DEVICE, methods=methods(plan, m)) for m in ("dense", "expand")]
        reference = ReferenceExecutor(plan, DEVICE)
        inputs = [example(plan) for _ in range(4)]
        expected = [reference(x) for x in inputs]
    torch.cuda.synchronize()

    def work(index: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream(DEVICE)):
            for _ in range(30):
                agree(executors[index % 2](inputs[index]), expected[index], f"thread {index}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def callers_graph() -> None:
    """A call captured by the caller replays with new inputs."""
    plan = made(3)
    with tf32(False):
        executor = CudaExecutor(plan, DEVICE, methods=methods(plan, "sparse"))
        reference = ReferenceExecutor(plan, DEVICE)
        x = example(plan)
        executor(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), torch.no_grad():
            result = executor(x)
        for _ in range(2):
            x.normal_()
            graph.replay()
            torch.cuda.synchronize()
            agree(result, reference(x))


def no_allocation_and_no_wait() -> None:
    """A call allocates its result alone and returns before the device has finished."""
    plan = made(16)
    x = example(plan)
    executor = CudaExecutor(plan, DEVICE, methods=methods(plan, "sparse"))
    executor(x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats(DEVICE)["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        executor(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    count = torch.cuda.memory_stats(DEVICE)["allocation.all.allocated"] - before
    if count > 1:
        raise AssertionError(f"a call made {count} allocations")


def memory_comes_back() -> None:
    """Executors leave nothing behind."""
    sizes = []
    for _ in range(3):
        executor = CudaExecutor(made(8), DEVICE, methods=methods(made(8), "expand"))
        del executor
        torch.cuda.empty_cache()
        sizes.append(torch.cuda.memory_reserved(DEVICE))
    if sizes[-1] > sizes[0]:
        raise AssertionError(f"reserved bytes grow: {sizes}")


def all_checks() -> Iterator[Check]:
    for dtype, method in itertools.product(LIMIT, ("sparse", "expand", "dense")):
        for batch in (1, 17) if (dtype, method) == (torch.float32, "sparse") else (8,):
            name = f"{method} {str(dtype).removeprefix('torch.')} batch {batch}"
            yield name, lambda dtype=dtype, batch=batch, method=method: every_method(dtype, batch, method)
    for dtype, method in itertools.product((torch.float16, torch.bfloat16), ("expand", "dense")):
        name = f"{method} {str(dtype).removeprefix('torch.')} batch 8, fused"
        yield name, lambda dtype=dtype, method=method: every_method(dtype, 8, method, fused=True)
    for method in ("sparse", "expand", "dense"):
        yield f"{method} TF32 layer", lambda method=method: tf32_layer(method)
    for method in ("expand", "dense"):
        yield f"{method} TF32 layer, fused", lambda method=method: tf32_layer(method, fused=True)
    for check in (
        measured_choice,
        threads_and_streams,
        callers_graph,
        no_allocation_and_no_wait,
        memory_comes_back,
    ):
        yield check.__name__.replace("_", " "), check


def run(until: float, say: Callable[[str], None]) -> list[str]:
    """Run all checks; those not begun by ``until`` (monotonic seconds) count as failed, and say so."""
    failures = []
    for name, check in all_checks():
        try:
            if time.monotonic() > until:
                raise TimeoutError("not run: no time left for checks")
            check()
        except Exception as error:  # the other checks tell where the fault lies
            failures.append(f"{name}: {type(error).__name__}: {error}")
            say(f"CHECK FAILED {failures[-1].splitlines()[0]}")
        else:
            say(f"ok {name}")
    return failures
