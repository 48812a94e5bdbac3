"""Check every CUDA path, then measure whole networks and layers against the best dense ways to run them.

Run it with any Python that has torch, torchvision and triton, on a machine with a GPU and no network:

    python benchmarks/gpu.py                # builds, checks, measures: benchmarks/results/cuda_<gpu>.json
    python benchmarks/gpu.py --dry-run      # lists the rows; needs no GPU

Every call is a CUDA graph, so that no row pays for Python. ``median_ms`` is with hot caches, ``cold_ms``
after a write larger than the L2 cache. What belongs together is timed in turns. Nothing is timed for a path
whose output was wrong. A row that fails is kept with its error and the rest go on; the exit code is then 1.
Rows come in order of interest, and when the time is up the rest is listed as not measured; ``--resume``
measures what the file lacks.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).parent))
NETWORKS = ("alexnet", "vgg16", "resnet50")
DENSITIES = (0.10, 0.05, 0.02)
BATCHES = (1, 64, 8, 256)
LINEAR_BATCHES = (1, 8)
DTYPES = ("float16", "float32")
LINEAR_LAYERS = ((4096, 9216), (4096, 25088))
BUDGET_SECONDS = 440
OURS = "finepruning"
KEY = ("network", "density", "batch", "dtype", "peer")


@dataclass(frozen=True)
class Job:
    """Rows that are timed in turns: one network or layer, one batch, one arithmetic; all densities."""

    network: str
    batch: int
    dtype: str
    precision: str  # "tf32", or the dtype
    densities: tuple[float, ...]
    compiled: bool

    @property
    def linear(self) -> tuple[int, int] | None:
        """(outputs, inputs) of a layer by itself."""
        if not self.network.startswith("linear "):
            return None
        into, out = self.network.split()[1].split("x")
        return int(out), int(into)

    def rows(self) -> list[dict[str, Any]]:
        """Its rows without their numbers. Dense networks do not depend on the density: they come once."""
        suffix = "_tf32" if self.precision == "tf32" else ""
        if self.linear:
            peers = [OURS, "cublas", "cusparse", *(["2:4"] if self.dtype == "float16" else [])]
            pairs = [(density, peer) for density in self.densities for peer in peers]
        else:
            dense = ["torch", "torch_channels_last", *(["torch_compile"] if self.compiled else [])]
            pairs = [(density, OURS + suffix) for density in self.densities]
            pairs += [(self.densities[0], peer + suffix) for peer in dense]
        return [
            {
                "network": self.network,
                "density": density,
                "batch": self.batch,
                "dtype": self.dtype,
                "peer": peer,
            }
            for density, peer in pairs
        ]


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Everything that a run measures, the most telling first."""
    densities = tuple(options.densities)
    for batch in options.batches:
        for dtype in options.dtypes:
            for network in options.networks:
                yield Job(network, batch, dtype, dtype, densities, options.compile)
            if batch in LINEAR_BATCHES:
                for out, into in LINEAR_LAYERS:
                    yield Job(f"linear {into}x{out}", batch, dtype, dtype, densities, False)
    if "float32" in options.dtypes:
        for batch in options.batches:
            for network in options.networks:
                yield Job(network, batch, "float32", "tf32", densities, options.compile)


def measured(job: Job, networks: Any) -> list[dict[str, Any]]:
    """The rows of a job."""
    import gpu_networks

    if job.linear:
        return [
            row for density in job.densities for row in gpu_networks.linear_rows(job.linear, density, job)
        ]
    return gpu_networks.network_rows(networks, job)


def install(target: str) -> None:
    """Build this checkout into ``target`` without a network and import from there."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", target, str(ROOT)], check=True)
    sys.path.insert(0, target)


def run(options: argparse.Namespace, begun: float) -> int:
    """Measure all rows; 1 if any failed."""
    if not torch.cuda.is_available():
        print("gpu.py: PyTorch finds no CUDA device; --dry-run lists the rows", file=sys.stderr)
        return 2
    import gpu_checks
    import gpu_networks

    def elapsed() -> float:
        return time.monotonic() - begun

    print(f"ready after {elapsed():.0f} s", flush=True)
    failures = gpu_checks.run(until=begun + options.budget / 3, say=lambda line: print(line, flush=True))
    print(f"checks ended after {elapsed():.0f} s: {len(failures)} failed", flush=True)
    name = torch.cuda.get_device_name()
    path = Path(options.out or ROOT / "benchmarks/results" / f"cuda_{name.lower().replace(' ', '_')}.json")
    done = previous(path) if options.resume else {}
    result = {**describe(name), "failed_checks": failures, "rows": list(done.values())}
    networks = gpu_networks.Networks()
    for job in jobs(options):
        wanted = [row for row in job.rows() if tuple(row[key] for key in KEY) not in done]
        if not wanted:
            continue
        if elapsed() > options.budget:
            rows = [{**row, "error": f"not measured: {options.budget:.0f} s are over"} for row in wanted]
        else:
            try:
                rows = measured(job, networks)
            except Exception as error:  # a job must not cost the others; its rows keep the reason
                rows = [{**row, "error": f"{type(error).__name__}: {error}"} for row in wanted]
        result["rows"] += rows
        print("\n".join(text(row) for row in rows), flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    failed = sum("error" in row or "skipped" in row for row in result["rows"])
    print(f"{len(result['rows'])} rows, {failed} without a time, {elapsed():.0f} s: {path}")
    return 1 if failed or failures else 0


def describe(device: str) -> dict[str, Any]:
    """Where the numbers come from."""
    import triton

    git = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True
    )
    return {
        "device": device,
        "versions": {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": triton.__version__,
            "python": sys.version.split()[0],
        },
        "commit": git.stdout.strip() or None,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def previous(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows of an earlier run that have a time; none where the file is missing or damaged."""
    try:
        rows = json.loads(path.read_text())["rows"]
        return {tuple(row[key] for key in KEY): row for row in rows if row.get("median_ms")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def text(row: dict[str, Any]) -> str:
    """A row as one line."""
    head = f"{row['network']:18} {row['density']:.2f} b{row['batch']:<4} {row['dtype']:8} {row['peer']:26}"
    reason = row.get("error", row.get("skipped"))
    if reason is not None:
        return f"{head} NO TIME {reason.splitlines()[0][:120] if reason else ''}"
    if "median_ms" not in row:
        return head.rstrip()
    mib = 1 << 20
    ratio = f"  {row['speedup']:5.2f}x the best dense" if "speedup" in row else ""
    return (
        f"{head} {row['median_ms']:9.4f} ms  cold {row['cold_ms']:9.4f} ms  "
        f"peak {row['peak_bytes'] / mib:8.1f} MiB  weights {row['weight_bytes'] / mib:7.1f} MiB{ratio}"
    )


def main(arguments: list[str] | None = None) -> int:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--densities", nargs="+", type=float, default=list(DENSITIES))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument(
        "--compile", action="store_true", help="also torch.compile max-autotune (slow to build)"
    )
    parser.add_argument("--no-build", action="store_true", help="use the finepruning that is installed")
    parser.add_argument(
        "--budget", type=float, default=BUDGET_SECONDS, help="seconds after which no row is begun"
    )
    parser.add_argument("--resume", action="store_true", help="keep the rows that the file has")
    parser.add_argument("--out", help="where to write the JSON")
    parser.add_argument("--dry-run", action="store_true", help="list the rows and stop; needs no GPU")
    options = parser.parse_args(arguments)
    options.densities.sort(reverse=True)
    if options.dry_run:
        rows = [row for job in jobs(options) for row in job.rows()]
        print("\n".join(text(row) for row in rows))
        print(f"{len(rows)} rows")
        return 0
    if options.no_build:
        return run(options, begun)
    with tempfile.TemporaryDirectory() as target:
        install(target)
        return run(options, begun)


if __name__ == "__main__":
    sys.exit(main())
