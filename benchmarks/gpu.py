"""Check every CUDA path, then measure whole networks against the best dense ways to run them.

Run it with any Python that has torch, torchvision and triton, on a machine with a GPU and no network:

    python benchmarks/gpu.py                # everything; writes benchmarks/results/cuda_<gpu>.json
    python benchmarks/gpu.py --dry-run      # lists the rows; needs no GPU

Every call is captured in a CUDA graph, so that no row pays for Python. ``median_ms`` is with hot caches,
``cold_ms`` after a write larger than the L2 cache. A row that fails is kept with its error and the rest
go on; the exit code is then 1. Nothing is timed for a path whose output was wrong.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("alexnet", "vgg16", "resnet50")
DENSITIES = (0.10, 0.05, 0.02)
BATCHES = (1, 8, 64, 256)
DTYPES = {"float16": torch.float16, "float32": torch.float32}
LINEAR_LAYERS = ((4096, 9216), (4096, 25088))
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2}
TF32_TOLERANCE = 1e-2  # of a whole network; a single layer's is 1e-3
SAMPLES = 15
BUDGET_SECONDS = 450


def network_peers(dtype: str, compiled: bool) -> list[str]:
    """Ways to run a whole network, ours first; "tf32" lets float32 use tensor cores."""
    peers = ["finepruning", "dense", "dense channels_last"]
    if dtype == "float32":
        peers += ["finepruning tf32", "dense tf32", "dense tf32 channels_last"]
    return [*peers, "dense compile"] if compiled else peers


def planned(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every row that a run measures, without its numbers."""
    rows = [
        {"network": network, "density": density, "batch": batch, "dtype": dtype, "peer": peer}
        for network, density, dtype, batch in itertools.product(
            options.networks, options.densities, options.dtypes, options.batches
        )
        for peer in network_peers(dtype, options.compile)
        # Dense rows do not depend on the density.
        if density == options.densities[0] or peer.startswith("finepruning")
    ]
    for (out, into), density, dtype, batch in itertools.product(
        LINEAR_LAYERS, options.densities, options.dtypes, (1, 8)
    ):
        peers = ["finepruning", "dense", "cusparse"]
        if dtype == "float16":
            peers.append("2:4")
        name = f"linear {into}x{out}"
        rows += [
            {"network": name, "density": density, "batch": batch, "dtype": dtype, "peer": p} for p in peers
        ]
    return rows


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Set torch's switches for TF32 and put them back."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def captured(call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """``call`` as the replay of a CUDA graph, and the tensor that each replay fills."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        result = call()
    return graph.replay, result


def timed(replay: Callable[[], None]) -> dict[str, float]:
    """Median milliseconds of one replay with hot and with cold L2."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")

    def one(cold: bool) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if cold:
            flush.zero_()
        else:
            replay()
        start.record()
        replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    hot = statistics.median(one(False) for _ in range(SAMPLES))
    return {"median_ms": hot, "cold_ms": statistics.median(one(True) for _ in range(SAMPLES))}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def measured(
    make: Callable[[], tuple[Callable[[], Tensor], int]], expected: Tensor, tolerance: float
) -> dict[str, Any]:
    """Build a peer, compare its output, time it; peak bytes include weights, activations and workspaces."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    call, weight_bytes = make()
    replay, result = captured(call)
    replay()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_reserved() - before
    error = relative_error(result, expected)
    if not error <= tolerance:
        raise AssertionError(f"output differs by {error:.2e} (limit {tolerance:.0e})")
    return {**timed(replay), "peak_bytes": peak, "weight_bytes": weight_bytes, "error_norm": error}


def check_paths() -> None:
    """Run a small network through every kernel against plain PyTorch; raise where one is wrong."""
    from finepruning.bench.networks import prune_uniform
    from finepruning.engine.capture import capture
    from finepruning.engine.cuda import CudaExecutor
    from finepruning.engine.cuda_choice import layers
    from finepruning.engine.fuse import fuse
    from finepruning.engine.reference import ReferenceExecutor

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(32, 64, 3, padding=1, groups=4), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=2, dilation=2), nn.Conv2d(64, 96, 1), nn.ReLU(),
        nn.AvgPool2d(4), nn.Flatten(), nn.Linear(96 * 4, 512), nn.ReLU(), nn.Linear(512, 100),
    ).eval()  # fmt: skip
    prune_uniform(network, 0.1)
    for dtype, batch, method in itertools.product(
        (torch.float32, torch.float16, torch.bfloat16), (1, 3, 16, 17), ("sparse", "expand", "dense")
    ):
        graph, tensors = capture(network, (3, 64, 64), dtype)
        plan = fuse(graph, tensors, batch, dtype)
        x = torch.randn(batch, 3, 64, 64, device="cuda").to(dtype)
        with tf32(False):
            methods = dict.fromkeys((layer.name for layer in layers(plan, tf32=False)), method)
            actual = CudaExecutor(plan, "cuda", methods=methods)(x)
            expected = ReferenceExecutor(plan, "cuda")(x)
        error = relative_error(actual, expected)
        limit = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
        if not error <= limit:
            raise AssertionError(f"{method}, {dtype}, batch {batch}: error {error:.2e}, limit {limit:.0e}")


class Networks:
    """The networks of the table, made when first needed and kept one at a time."""

    def __init__(self) -> None:
        self._key: tuple[str, float] | None = None

    def get(self, name: str, density: float) -> tuple[Any, nn.Module]:
        """(SparseModel on the CPU, the same pruned network as a dense float32 module on the CPU)."""
        from finepruning import models
        from finepruning.bench.networks import prune_uniform
        from finepruning.engine import SparseModel

        if self._key != (name, density):
            network = models.create(name, 1000, "none", 0)
            prune_uniform(network.module, density)
            self._module = network.module.eval()
            size = network.image_size
            self._sparse = SparseModel.from_dense(self._module, torch.zeros(1, 3, size, size))
            self._key = (name, density)
        return self._sparse, self._module


def network_row(row: dict[str, Any], networks: Networks) -> dict[str, Any]:
    """Measure one peer on one network."""
    from finepruning.engine.cuda import CudaExecutor
    from finepruning.engine.fuse import fuse
    from finepruning.sparse.csr import CSR

    sparse, module = networks.get(row["network"], row["density"])
    dtype, peer, batch = DTYPES[row["dtype"]], row["peer"], row["batch"]
    torch.manual_seed(1)
    x = torch.randn(batch, *sparse.input_shape, device="cuda").to(dtype)
    with tf32("tf32" in peer):
        with tf32(False), torch.no_grad():
            dense = module.to("cuda")
            expected = torch.cat([dense(part.float()) for part in x.split(32)])
            module.to("cpu")

        def ours() -> tuple[Callable[[], Tensor], int]:
            stored = sparse._stored
            tensors = {
                name: CSR(t.values.to(dtype), t.col, t.rowptr, t.shape) if isinstance(t, CSR) else t
                for name, t in stored.tensors.items()
            }
            executor = CudaExecutor(fuse(stored.graph, tensors, batch, dtype), "cuda")
            row["kernels"] = sorted({step.kernel for step in executor.report()})
            return (lambda: executor(x)), sum(step.bytes for step in executor.report())

        def theirs() -> tuple[Callable[[], Tensor], int]:
            last = torch.channels_last if "channels_last" in peer else torch.contiguous_format
            dense = copy.deepcopy(module).to("cuda", dtype, memory_format=last)
            image = x.contiguous(memory_format=last)
            run = torch.compile(dense, mode="max-autotune-no-cudagraphs") if "compile" in peer else dense
            return (lambda: run(image)), sum(p.nbytes for p in dense.parameters())

        limit = TF32_TOLERANCE if "tf32" in peer else TOLERANCE[dtype]
        return measured(ours if peer.startswith("finepruning") else theirs, expected, limit)


def linear_row(row: dict[str, Any]) -> dict[str, Any]:
    """Measure one peer on one fully connected layer."""
    from finepruning.kernels import layout
    from finepruning.kernels.linear import sparse_linear

    from finepruning.engine import cuda_weights
    from finepruning.sparse.csr import CSR

    into, out = (int(size) for size in row["network"].split()[1].split("x"))
    dtype, batch, peer = DTYPES[row["dtype"]], row["batch"], row["peer"]
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(out, into, generator=generator)
    if peer == "2:4":
        weight *= torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(out, into // 4)
    else:
        weight *= torch.rand(out, into, generator=generator) < row["density"]
    weight = weight.to(dtype)
    x = torch.randn(batch, into, generator=generator).to("cuda", dtype)

    def make() -> tuple[Callable[[], Tensor], int]:
        if peer == "finepruning":
            csr = CSR.from_dense(weight)
            packed = cuda_weights.packed(csr, dtype, x.device)
            inner = layout.empty((batch, into), dtype=dtype, device="cuda")
            inner.copy_(x)
            y = layout.empty((batch, out), dtype=dtype, device="cuda")

            def run() -> Tensor:
                sparse_linear(inner, packed.ell, y)
                return y

            return run, packed.nbytes
        dense = weight.to("cuda")
        if peer == "dense":
            return (lambda: nn.functional.linear(x, dense)), dense.nbytes
        if peer == "cusparse":
            compressed = dense.to_sparse_csr()
            size = sum(
                t.nbytes for t in (compressed.values(), compressed.col_indices(), compressed.crow_indices())
            )
            columns = x.t().contiguous()
            return (lambda: (compressed @ columns).t()), size
        structured = torch.sparse.to_sparse_semi_structured(dense)
        wide = torch.zeros(max(batch, 16), into, dtype=dtype, device="cuda")
        wide[:batch] = x
        return (lambda: nn.functional.linear(wide, structured)[:batch]), dense.nbytes * 9 // 16

    with tf32(False):
        expected = x.float() @ weight.to("cuda").float().t()
        return measured(make, expected, TOLERANCE[dtype])


def install(target: str) -> None:
    """Build this checkout into ``target`` without a network and import from there."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*command, "--target", target, str(ROOT)], check=True)
    sys.path.insert(0, target)


def run(options: argparse.Namespace) -> int:
    """Measure all rows; 1 if any failed."""
    begun = time.monotonic()
    if not torch.cuda.is_available():
        print("gpu.py: PyTorch finds no CUDA device; --dry-run lists the rows", file=sys.stderr)
        return 2
    check_paths()
    print(f"all CUDA paths agree with the reference ({time.monotonic() - begun:.0f} s)", flush=True)
    gpu = torch.cuda.get_device_name()
    result: dict[str, Any] = {
        "device": gpu,
        "versions": {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": sys.version.split()[0],
        },
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "rows": [],
    }
    path = Path(options.out or ROOT / "benchmarks" / "results" / f"cuda_{gpu.lower().replace(' ', '_')}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    networks = Networks()
    for row in planned(options):
        try:
            if time.monotonic() - begun > options.budget:
                raise TimeoutError(f"not measured: the budget of {options.budget} s is spent")
            row |= linear_row(row) if row["network"].startswith("linear") else network_row(row, networks)
        except Exception as error:  # one row must not cost the others; it stays in the table with its error
            row["error"] = f"{type(error).__name__}: {error}"
        result["rows"].append(row)
        print(text(row), flush=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    failed = sum("error" in row for row in result["rows"])
    print(f"{len(result['rows'])} rows, {failed} failed, {time.monotonic() - begun:.0f} s: {path}")
    return 1 if failed else 0


def text(row: dict[str, Any]) -> str:
    head = f"{row['network']:18} {row['density']:.2f} b{row['batch']:<4} {row['dtype']:8} {row['peer']:26}"
    if "error" in row:
        return f"{head} FAILED {row['error'].splitlines()[0][:120]}"
    if "median_ms" not in row:
        return head.rstrip()
    mib = 1 << 20
    return (
        f"{head} {row['median_ms']:9.4f} ms  cold {row['cold_ms']:9.4f} ms  "
        f"peak {row['peak_bytes'] / mib:8.1f} MiB  weights {row['weight_bytes'] / mib:7.1f} MiB"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--densities", nargs="+", type=float, default=list(DENSITIES))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument(
        "--compile", action="store_true", help="also torch.compile max-autotune (slow to build)"
    )
    parser.add_argument("--no-build", action="store_true", help="use the finepruning that is installed")
    parser.add_argument(
        "--budget", type=float, default=BUDGET_SECONDS, help="seconds after which rows are skipped"
    )
    parser.add_argument("--out", help="where to write the JSON")
    parser.add_argument("--dry-run", action="store_true", help="list the rows and stop; needs no GPU")
    options = parser.parse_args(arguments)
    if options.dry_run:
        rows = planned(options)
        print("\n".join(text(row) for row in rows))
        print(f"{len(rows)} rows")
        return 0
    if options.no_build:
        return run(options)
    with tempfile.TemporaryDirectory() as target:
        install(target)
        return run(options)


if __name__ == "__main__":
    sys.exit(main())
