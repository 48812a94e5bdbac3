"""The benchmark: outputs compared first, then a pruned model timed against its dense twin elsewhere."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finepruning.bench import floor, machine, memory
from finepruning.bench.peers import Call, Peer, choose
from finepruning.bench.timing import HostStopwatch, Timing, interleave
from finepruning.bench.twin import DenseTwin, dense_twin
from finepruning.engine import SparseModel
from finepruning.errors import ArgumentError, DeviceError, FinepruningError
from finepruning.sparse.csr import CSR
from finepruning.sparse.storage import StoredModel, load

OURS = memory.OURS
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Largest norm of (output - reference) over norm of the reference, the float32 dense twin in PyTorch.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class OutputMismatchError(FinepruningError):
    """The pruned model's outputs differ from its dense twin's, so no speed is reported."""


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        device: "cpu", "cuda" or "cuda:N". batches: batch sizes. threads: CPU threads of every runtime, or
            None for PyTorch's number. dtype: of weights and, for peers, of arithmetic.
        peers: names of dense peers, or None for all that are installed.
        layers: also time the layers one by one. memory: also measure peak memory (takes seconds a peer).
        seconds: timed seconds wanted a row.
    """

    device: str = "cpu"
    batches: tuple[int, ...] = (1, 16)
    threads: int | None = None
    dtype: str = "float32"
    peers: tuple[str, ...] | None = None
    layers: bool = False
    memory: bool = True
    seconds: float = 1.0


def resolve_device(name: str) -> torch.device:
    """``name`` as a device that is there.

    Raises:
        ArgumentError: no such kind of device. DeviceError: CUDA where there is none, or too high an index.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ArgumentError(f"--device: {name!r} is not cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ArgumentError(f"--device: {name!r} is not cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise DeviceError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
        if (device.index or 0) >= count:
            raise DeviceError(
                f"--device {name}: there are {count} CUDA devices, the last is cuda:{count - 1}"
            )
    return device


def bench(
    model_dir: Path, name: str, options: BenchOptions, *, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Measure the model stored in ``model_dir`` against its dense twin.

    Args:
        model_dir: a model directory, as `SparseModel.save_pretrained` writes it.
        name: how to call the network in the results.
        options: what to measure.
        say: receives one line before each long step.

    Returns:
        JSON-ready: ``date``, ``commit``, ``machine``, ``versions``, ``limits``, ``rows`` (one for each
        batch and runtime, ours first) and, when asked for, ``layers``.

    Raises:
        OutputMismatchError: our outputs differ from the dense twin's.
        ArgumentError, DeviceError, ModelFileError: the request cannot be carried out.
    """
    device, dtype, peers = check(options)
    threads_before = torch.get_num_threads()
    threads = options.threads or threads_before
    torch.set_num_threads(threads)
    try:
        model = SparseModel.from_pretrained(model_dir, device=device, dtype=dtype)
        result: dict[str, Any] = {
            "network": name,
            **machine.describe(device, threads, [p.package for p in peers if p.package is not None]),
            "dtype": options.dtype,
            "rows": [],
        }
        limits = None
        if device.type == "cpu":
            limits = floor.measure_limits(threads)
            result["limits"] = {
                "gmacs_per_second": limits.macs_per_second / 1e9,
                "gbytes_per_second": limits.bytes_per_second / 1e9,
            }
        peaks = _peaks(model_dir, peers, device, threads, options, say)
        stored = load(model_dir)
        for batch in options.batches:
            say(f"batch {batch}: preparing {', '.join(p.name for p in peers) or 'no peers'}")
            if device.type == "cuda":
                result["rows"] += _cuda_rows(model, stored, batch, peers, dtype, device, options, say)
                continue
            result["rows"] += _rows(model, stored, batch, peers, threads, dtype, options, limits, peaks, say)
        for row in result["rows"]:
            row.update(network=name, density=model_density(stored), dtype=options.dtype, threads=threads)
        if options.layers:
            of_cpu = model._stored if device.type == "cpu" else stored  # the former in ``dtype``
            result["layers"] = _layers(of_cpu, options, dtype, device, limits)
    finally:
        torch.set_num_threads(threads_before)
    return result


def _cuda_rows(
    model: SparseModel,
    stored: StoredModel,
    batch: int,
    peers: Sequence[Peer],
    dtype: torch.dtype,
    device: torch.device,
    options: BenchOptions,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    from finepruning.bench.cuda import network_rows
    from finepruning.engine.cuda import CudaExecutor
    from finepruning.engine.fuse import fuse

    own = model._stored  # in ``dtype``
    say(f"batch {batch}: timing")
    rows = network_rows(
        stored,
        lambda images: CudaExecutor(fuse(own.graph, own.tensors, images, dtype), device),
        batch,
        peers,
        dtype,
        device,
        options.seconds,
    )
    for row in rows:
        if row["peer"].startswith(OURS) and ("skipped" in row or "error" in row):
            raise OutputMismatchError(
                f"batch {batch}, {row['peer']}: {row.get('skipped', row.get('error'))}, so no speed is "
                "reported; this is a defect worth reporting"
            )
    return rows


def _layers(
    stored: StoredModel,
    options: BenchOptions,
    dtype: torch.dtype,
    device: torch.device,
    limits: floor.MachineLimits | None,
) -> list[dict[str, Any]]:
    if device.type == "cpu":
        from finepruning.bench.layers import layer_rows

        return [row for batch in options.batches for row in layer_rows(stored, batch, limits)]
    from finepruning.bench.cuda_linear import linear_rows

    return [
        {**row, "name": node.name}
        for batch in options.batches
        for node in stored.graph.nodes
        if node.op == "linear" and isinstance(weight := stored.tensors[node.weight or ""], CSR)
        for row in linear_rows(weight, batch, dtype, device, options.seconds)
    ]


def check(options: BenchOptions) -> tuple[torch.device, torch.dtype, list[Peer]]:
    """The device, dtype and peers that ``options`` name.

    Raises:
        ArgumentError, DeviceError: something in ``options`` cannot be had here.
    """
    if not options.batches or min(options.batches) < 1:
        raise ArgumentError("--batch: needs sizes of at least 1, such as 1,16")
    if options.threads is not None and options.threads < 1:
        raise ArgumentError(f"--threads: {options.threads} is less than 1")
    if not options.seconds > 0:
        raise ArgumentError(f"--seconds: {options.seconds} must be above 0")
    device, dtype = resolve_device(options.device), _dtype(options.dtype)
    return device, dtype, choose(options.peers, device, dtype)


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ArgumentError(f"--dtype: {name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def model_density(stored: StoredModel) -> float:
    """Nonzero weights over all weights of the layers that have them."""
    kept = size = 0
    for name in {node.weight for node in stored.graph.nodes if node.op in ("conv2d", "linear")}:
        weight = stored.tensors[name or ""]
        if isinstance(weight, CSR):
            kept, size = kept + weight.nnz, size + weight.rows * weight.columns
        else:
            kept, size = kept + int(weight.count_nonzero()), size + weight.numel()
    return kept / size if size else 1.0


def _rows(
    model: SparseModel,
    stored: StoredModel,
    batch: int,
    peers: Sequence[Peer],
    threads: int,
    dtype: torch.dtype,
    options: BenchOptions,
    limits: floor.MachineLimits | None,
    peaks: dict[str, dict[int, int] | None],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    device = resolve_device(options.device)
    x = torch.rand(batch, *model.input_shape, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    rows = []
    calls: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        reference = dense_twin(stored, x, Path(folder)).module(x)
        error = _relative_error(model(x), reference)
        if not error <= TOLERANCE[dtype]:
            raise OutputMismatchError(
                f"batch {batch}: outputs differ from the dense network's by {error:.2g} (relative norm, "
                f"allowed is {TOLERANCE[dtype]:g}), so no speed is reported; this is a defect worth reporting"
            )
        reports = model.plan(batch)
        rows.append(_row(batch, OURS, error, sum(r.bytes for r in reports), peaks))
        if limits is not None:
            rows[0]["floor_ms"] = floor.network_floor_ms(reports, limits, dtype.itemsize)
        calls[OURS] = lambda: model(x)
        twin = dense_twin(stored, x.to(dtype), Path(folder))
        for peer in peers:
            call = peer.prepare(twin, threads)
            error = _relative_error(call(twin.example), reference)
            row = _row(batch, peer.name, error, twin.weight_bytes, peaks)
            rows.append(row)
            if error <= TOLERANCE[dtype]:
                calls[peer.name] = _bound(call, twin)
            else:
                row["skipped"] = f"outputs differ from the float32 reference by {error:.2g}"
        say(f"batch {batch}: timing")
        timings = interleave(calls, stopwatch=HostStopwatch(), seconds=options.seconds)
    for row in rows:
        row.update(_times(timings.get(row["peer"])))
    sparse = {peer.name for peer in peers if peer.sparse}
    dense = [r["median_ms"] for r in rows[1:] if r["median_ms"] is not None and r["peer"] not in sparse]
    if dense:
        rows[0]["speedup"] = min(dense) / rows[0]["median_ms"]
    return rows


def _bound(call: Call, twin: DenseTwin) -> Callable[[], Any]:
    return lambda: call(twin.example)


def _row(
    batch: int, peer: str, error: float, weight_bytes: int, peaks: dict[str, dict[int, int] | None]
) -> dict[str, Any]:
    return {
        "batch": batch,
        "peer": peer,
        "relative_error": error,
        "weight_bytes": weight_bytes,
        "peak_bytes": (peaks.get(peer) or {}).get(batch),
    }


def _times(timing: Timing | None) -> dict[str, Any]:
    if timing is None:
        return {"median_ms": None, "p20_ms": None, "p80_ms": None, "samples": 0}
    return {
        "median_ms": timing.median_ms,
        "p20_ms": timing.p20_ms,
        "p80_ms": timing.p80_ms,
        "samples": len(timing.samples_ms),
    }


def _relative_error(out: Tensor, reference: Tensor) -> float:
    out, reference = out.detach().to("cpu", torch.float64), reference.detach().to("cpu", torch.float64)
    return float((out - reference).norm() / reference.norm().clamp_min(1e-30))


def _peaks(
    model_dir: Path,
    peers: Sequence[Peer],
    device: torch.device,
    threads: int,
    options: BenchOptions,
    say: Callable[[str], None],
) -> dict[str, dict[int, int] | None]:
    if not options.memory or device.type != "cpu" or not memory.available():
        return {}
    say("measuring memory, each runtime in a process of its own")
    names = [OURS, *(peer.name for peer in peers)]
    requests = [
        memory.MemoryRequest(str(model_dir), name, options.batches, threads, options.dtype) for name in names
    ]
    return dict(zip(names, memory.peak_bytes(requests), strict=True))
