"""Measuring on a GPU: every contender is a CUDA graph, timed with events, with hot and with cold caches.

A graph replays without Python, so no contender pays for it, and none copies its input: what a replay reads
is already there.

The memory of a contender is what the device must keep for it from one forward to the next: tensors that live
once it is prepared (weights, arena), and the whole pool of its graph (activations, results, workspaces of
cuDNN and cuBLAS), whose pages nobody else can get. That is also its peak, because a replay allocates nothing.
Its input does not count: the dense peers read one in common. Nor does what preparing takes and gives back,
nor what lies outside PyTorch's allocator (machine code, the nodes of a graph). The definition is one for all.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finepruning.bench.memory import OURS
from finepruning.bench.peers import Peer
from finepruning.bench.timing import CudaStopwatch, interleave
from finepruning.bench.twin import dense_twin
from finepruning.engine import cuda_graph
from finepruning.engine.plan import Executor
from finepruning.sparse.storage import StoredModel

# Largest norm of (output - reference) over norm of the reference, by arithmetic. A layer with TF32 stays
# within 1e-3 (benchmarks/gpu_checks.py); over a network rounding adds up, for the dense peers as for us.
TOLERANCE = {"float32": 1e-4, "tf32": 5e-3, "float16": 1e-2, "bfloat16": 5e-2}
FLUSH_BYTES = 256 << 20  # more than twice the L2 cache of any GPU


@dataclass(frozen=True)
class Prepared:
    """A contender ready to be timed.

    Attributes:
        replay: enqueues one forward on the current stream. output: the tensor that it fills.
        weight_bytes: of weights on the device. notes: further columns of its row.
        own_input: the input, if ``replay`` reads another than the one that all have in common.
        keep: what must live as long as ``replay`` is called.
    """

    replay: Callable[[], None]
    output: Tensor
    weight_bytes: int
    notes: Mapping[str, Any] = field(default_factory=dict)
    keep: Any = None
    own_input: Tensor | None = None


@dataclass(frozen=True)
class Contender:
    """One way to compute the same: its name, its arithmetic (a key of `TOLERANCE`), how to make it.

    ``expected`` replaces the common reference for a contender with other weights; ``columns`` start its row.
    """

    name: str
    precision: str
    prepare: Callable[[], Prepared]
    expected: Tensor | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let float32 use tensor cores, or not, and put the switches back."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def record(device: torch.device, call: Callable[[], Tensor], weight_bytes: int, keep: Any = None) -> Prepared:
    """``call`` as a CUDA graph. It runs before, so that what compiles or tunes itself has done so."""
    result: list[Tensor] = []

    def launch() -> None:
        result[:] = [call()]

    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True  # every contender gets cuDNN's best algorithm
    try:
        with torch.no_grad():
            for _ in range(2):
                call()
        torch.cuda.synchronize(device)
        with cuda_graph.recording:
            recording = cuda_graph.Recording(device, launch)
    finally:
        torch.backends.cudnn.benchmark = benchmark
    return Prepared(recording.replay, result[0], weight_bytes, {}, (recording, call, keep))


def ours(executor: Executor, x: Tensor) -> Prepared:
    """A CUDA executor with its own graph; ``x`` is left in its input."""
    executor(x)
    reports = executor.report()
    kernels = sorted({step.kernel for step in reports if step.nnz is not None})
    output: Tensor = executor.output[: x.shape[0]]  # type: ignore[attr-defined]
    return Prepared(
        executor.replay,  # type: ignore[attr-defined]
        output,
        sum(step.bytes for step in reports),
        {"kernels": kernels},
        executor,
        executor.input,  # type: ignore[attr-defined]
    )


def measure(
    contenders: Sequence[Contender], expected: Tensor, device: torch.device, *, seconds: float = 0.2
) -> list[dict[str, Any]]:
    """Prepare, compare and time contenders in turns; one row each, in their order.

    Args:
        contenders: whose preparing may fail: the row then has ``error`` and the others go on.
        expected: float32 reference of their output, on the device.
        seconds: timed seconds wanted of each, hot and cold alike.

    Returns:
        Rows with ``peer, precision, relative_error, median_ms, p20_ms, p80_ms, samples, cold_ms, peak_bytes,
        weight_bytes``; where outputs differ ``skipped`` says by how much, and no time is given.
    """
    rows: list[dict[str, Any]] = []
    ready: dict[int, Prepared] = {}
    prepared: Prepared | None
    for index, contender in enumerate(contenders):
        row: dict[str, Any] = {
            **contender.columns,
            "peer": contender.name,
            "precision": contender.precision,
        }
        rows.append(row)
        try:
            prepared, row["peak_bytes"] = _prepare(contender, device)
            reference = expected if contender.expected is None else contender.expected
            error = relative_error(prepared.output, reference)
            row |= {
                "relative_error": error,
                "weight_bytes": prepared.weight_bytes,
                **prepared.notes,
            }
            if error <= TOLERANCE[contender.precision]:
                ready[index] = prepared
            else:
                row["skipped"] = f"outputs differ from the float32 reference by {error:.2g}"
        except Exception as problem:  # one contender must not cost the others; its row keeps the reason
            row["error"] = f"{type(problem).__name__}: {problem}"
        prepared = None  # what is not timed must not stay, lest the next share its weights
    calls = {str(index): prepared.replay for index, prepared in ready.items()}
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    hot = interleave(calls, stopwatch=CudaStopwatch(device), seconds=seconds)
    cold = interleave(calls, stopwatch=CudaStopwatch(device, flush), seconds=seconds)
    for index, row in enumerate(rows):
        timing = hot.get(str(index))
        row["median_ms"] = None if timing is None else timing.median_ms
        row["p20_ms"] = None if timing is None else timing.p20_ms
        row["p80_ms"] = None if timing is None else timing.p80_ms
        row["samples"] = 0 if timing is None else len(timing.samples_ms)
        row["cold_ms"] = None if timing is None else cold[str(index)].median_ms
    return rows


def _prepare(contender: Contender, device: torch.device) -> tuple[Prepared, int]:
    """The contender, and the device memory that it holds, as this module defines it."""
    before = held(device)
    prepared = contender.prepare()
    prepared.replay()
    after = held(device)
    new = {key: size for key, size in after.items() if key not in before}
    peak = sum(new.values())
    if prepared.own_input is not None:
        # Its values only: a border around them is ours to answer for.
        storage = (0, 0, prepared.own_input.untyped_storage().data_ptr())
        peak -= min(prepared.own_input.nbytes, new.get(storage, 0))
    return prepared, peak


def held(device: torch.device) -> dict[tuple[int, int, int], int]:
    """Bytes of each tensor and of each segment of a graph's pool, by (pool, address).

    Compared piece by piece, because sums go wrong where something of an earlier contender is freed between
    them. Garbage, caches and the workspaces that cuBLAS keeps for calls outside graphs are dropped first.
    """
    gc.collect()
    torch.cuda.synchronize(device)
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    pieces: dict[tuple[int, int, int], int] = {}
    for segment in torch.cuda.memory.memory_snapshot(include_traces=False):  # type: ignore[no-untyped-call]
        if segment["device"] != (device.index or 0):
            continue
        first, second = segment["segment_pool_id"]
        address = segment["address"]
        if (first, second) != (0, 0):
            pieces[first, second, address] = segment["total_size"]
            continue
        for block in segment["blocks"]:
            if block["state"] != "inactive":
                pieces[first, second, address] = block["size"]
            address += block["size"]
    return pieces


def relative_error(out: Tensor, reference: Tensor) -> float:
    """Norm of the difference over norm of the reference, in float64."""
    out, reference = out.detach().to(torch.float64), reference.detach().to(torch.float64)
    return float((out - reference).norm() / reference.norm().clamp_min(1e-30))


def precisions(dtype: torch.dtype) -> list[tuple[str, str]]:
    """(suffix of names, precision): float32 comes strict and with TF32."""
    name = str(dtype).removeprefix("torch.")
    return [("", name), ("_tf32", "tf32")] if dtype is torch.float32 else [("", name)]


def network_rows(
    stored: StoredModel,
    make: Callable[[int], Executor],
    batch: int,
    peers: Sequence[Peer],
    dtype: torch.dtype,
    device: torch.device,
    seconds: float,
) -> list[dict[str, Any]]:
    """One row for each way to run a stored model: ours and the peers, for float32 strict and with TF32.

    Args:
        make: from a batch to a new executor, under the switches for TF32 that hold when it is called.
    """
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(batch, *stored.graph.input_shape, generator=generator) * 2 - 1).to(device)
    with tempfile.TemporaryDirectory() as folder, torch.cuda.device(device), torch.no_grad():
        with tf32(False):
            expected = dense_twin(stored, x, Path(folder)).module(x)
        example = x.to(dtype)

        def sparse(allowed: bool) -> Prepared:
            with tf32(allowed):
                return ours(make(batch), example)

        def dense(peer: Peer, allowed: bool) -> Prepared:
            # A twin of its own, so that its weights count; only what the peer keeps of it stays.
            with tf32(allowed):
                twin = dense_twin(stored, example, Path(folder))
                call, size = peer.prepare(twin, 1), twin.weight_bytes
                del twin
                return record(device, lambda: call(example), size)

        rows = []
        # One precision after the other: executors that live together would share their weights.
        for suffix, precision in precisions(dtype):
            allowed = precision == "tf32"
            contenders = [Contender(OURS + suffix, precision, partial(sparse, allowed))]
            contenders += [
                Contender(peer.name + suffix, precision, partial(dense, peer, allowed)) for peer in peers
            ]
            rows += measure(contenders, expected, device, seconds=seconds)
    for row in rows:
        row["batch"] = batch
    add_speedups(rows)
    return rows


def add_speedups(rows: Sequence[dict[str, Any]]) -> None:
    """Give our rows the ratio of the best dense time of equal precision to ours."""
    for row in rows:
        if row["peer"].startswith(OURS) and row["median_ms"]:
            others = [
                other["median_ms"]
                for other in rows
                if not other["peer"].startswith(OURS)
                and other["precision"] == row["precision"]
                and other["median_ms"]
            ]
            if others:
                row["speedup"] = min(others) / row["median_ms"]
