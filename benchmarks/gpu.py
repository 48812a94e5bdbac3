"""Check every CUDA path, then measure whole networks and layers against the best dense ways to run them.

Run it with any Python that has torch, torchvision and triton, on a machine with a GPU and no network:

    python benchmarks/gpu.py                # builds, checks, measures: benchmarks/results/cuda_<gpu>.json
    python benchmarks/gpu.py --dry-run      # lists the rows; needs no GPU

Every call is a CUDA graph, so that no row pays for Python. ``median_ms`` is with hot caches, ``cold_ms``
after a write larger than the L2 cache. What belongs together is timed in turns. Nothing is timed for a path
whose output was wrong. A row that fails is kept with its error and the rest go on; the exit code is then 1.
Rows come in order of interest, and when the time is up the rest is listed as not measured; ``--resume``
measures what the file lacks, without the checks if they passed at the same commit. All this runs in a process
of its own: where rows end it, another one tries them once more and then goes on. Kernels are compiled
ahead on all cores. Rows of torch.compile are listed as left out unless ``--compile`` asks for them.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
# Stands in the file while rows are measured, and stays where the process does not survive that.
ENDED = "the process ended while this was measured"
TRIES = 2  # of rows that end it


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
            dense = ["torch", "torch_channels_last", "torch_compile"]
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


def left_out(job: Job) -> list[dict[str, Any]]:
    """Rows of a job that this run does not want, with the reason; they stand in the table without a time."""
    if job.compiled:
        return []
    reason = "not measured: torch.compile max-autotune takes minutes a network; --compile adds it"
    return [{**row, "left_out": reason} for row in job.rows() if row["peer"].startswith("torch_compile")]


def compile_ahead(options: argparse.Namespace, seconds: float) -> int:
    """Fill Triton's cache with kernels of the networks; how many configurations made it.

    A process a core: compiling takes most of the time otherwise. What fails (said once) or takes too long is
    compiled when needed.
    """
    major, minor = torch.cuda.get_device_capability()
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    begun = time.monotonic()
    failures: list[str] = []

    def work(job: tuple[str, int, str]) -> bool:
        left = seconds - (time.monotonic() - begun)
        module = [sys.executable, "-m", "finepruning.bench.cuda_offline"]
        name, batch, dtype = job
        command = [*module, name, str(batch), dtype, f"{major}{minor}", *map(str, options.densities)]
        try:
            # Not in the checkout: "-m" would import its package, whose kernels are put in place by a build.
            done = subprocess.run(
                command,
                env=environment,
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                timeout=max(left, 0.01),
            )
        except subprocess.TimeoutExpired:
            return False
        if done.returncode:
            failures.append((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
        return done.returncode == 0

    wanted = [(n, b, d) for b in options.batches for d in options.dtypes for n in options.networks]
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) - 1)) as pool:
        count = sum(pool.map(work, wanted))
    if failures:
        print(f"{len(failures)} configurations could not be compiled ahead: {failures[0]}", file=sys.stderr)
    return count


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
    import gpu_checks
    import gpu_networks

    def elapsed() -> float:
        return time.monotonic() - begun

    print(f"ready after {elapsed():.0f} s", flush=True)
    name = torch.cuda.get_device_name()
    path = result_path(options)
    done = previous(path) if options.resume or options.restarted else {}
    tried = tries(path) if options.resume or options.restarted else {}
    if options.restarted:
        failures = json.loads(path.read_text())["failed_checks"]
    elif options.resume and checked(path):
        failures = []
        print("checks passed in the run that is resumed")
    else:
        count = compile_ahead(options, options.budget / 5) if options.compile_ahead else 0
        print(f"kernels of {count} configurations compiled after {elapsed():.0f} s", flush=True)
        failures = gpu_checks.run(until=begun + options.budget / 2, say=lambda line: print(line, flush=True))
        print(f"checks ended after {elapsed():.0f} s: {len(failures)} failed", flush=True)
    result = {**describe(name), "failed_checks": failures, "rows": list(done.values())}
    networks = gpu_networks.Networks()
    gc.freeze()  # comparing memory collects garbage; what lives for good need not be searched
    for job in jobs(options):
        result["rows"] += left_out(job)
        out = {row["peer"] for row in left_out(job)}
        wanted = [row for row in job.rows() if key_of(row) not in done]
        wanted = [row for row in wanted if row["peer"] not in out]
        if not wanted:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        ended = [{**row, "error": ENDED, "tries": tried.get(key_of(row), 0) + 1} for row in wanted]
        path.write_text(json.dumps({**result, "rows": result["rows"] + ended}, indent=1) + "\n")
        if elapsed() > options.budget:
            rows = [{**row, "error": f"not measured: {options.budget:.0f} s are over"} for row in wanted]
        else:
            try:
                rows = measured(job, networks)
            except Exception as error:  # a job must not cost the others; its rows keep the reason
                rows = [{**row, "error": f"{type(error).__name__}: {error}"} for row in wanted]
        result["rows"] += rows
        print("\n".join(text(row) for row in rows), flush=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    failed = sum("error" in row or "skipped" in row for row in result["rows"])
    print(f"{len(result['rows'])} rows, {failed} without a time, {elapsed():.0f} s: {path}")
    return 1 if failed or failures else 0


def supervise(arguments: list[str], options: argparse.Namespace, begun: float) -> int:
    """Run a process that measures, and another one where a signal ended it; the last one's exit code."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    path = result_path(options)
    again, before = [], path.read_bytes() if path.exists() else None
    while True:
        left = max(options.budget - (time.monotonic() - begun), 0.0)
        command = [sys.executable, "-X", "faulthandler", __file__, *arguments]
        command += ["--worker", *again, f"--budget={left}"]
        code = subprocess.run(command, env=environment).returncode
        written = path.read_bytes() if path.exists() else None
        if code >= 0 or written in (None, before):
            return code if code >= 0 else 1
        print(f"the process ended by signal {-code}; another one goes on", file=sys.stderr, flush=True)
        again, before = ["--restarted"], written


def result_path(options: argparse.Namespace) -> Path:
    """Where the numbers go."""
    name = torch.cuda.get_device_name().lower().replace(" ", "_")
    return Path(options.out or ROOT / "benchmarks/results" / f"cuda_{name}.json")


def describe(device: str) -> dict[str, Any]:
    """Where the numbers come from."""
    import triton

    return {
        "device": device,
        "versions": {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": triton.__version__,
            "python": sys.version.split()[0],
        },
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a row from all others."""
    return tuple(row[key] for key in KEY)


def previous(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows of an earlier run that have a time or ended it for good; none where the file is damaged."""
    spent = {key for key, count in tries(path).items() if count >= TRIES}
    return {key_of(row): row for row in stored(path) if row.get("median_ms") or key_of(row) in spent}


def tries(path: Path) -> dict[tuple[Any, ...], int]:
    """How often each row ended the process."""
    return {key_of(row): row.get("tries", 1) for row in stored(path) if row.get("error") == ENDED}


def stored(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none where it is missing or damaged."""
    try:
        rows = json.loads(path.read_text())["rows"]
        return [row for row in rows if key_of(row)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def checked(path: Path) -> bool:
    """Whether the file is of this commit and all checks had passed."""
    try:
        result = json.loads(path.read_text())
        return result["failed_checks"] == [] and result["commit"] == commit() is not None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def commit() -> str | None:
    """The checkout's commit."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def text(row: dict[str, Any]) -> str:
    """A row as one line."""
    head = f"{row['network']:18} {row['density']:.2f} b{row['batch']:<4} {row['dtype']:8} {row['peer']:26}"
    reason = row.get("error", row.get("skipped", row.get("left_out")))
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
    parser.add_argument(
        "--no-compile-ahead", dest="compile_ahead", action="store_false", help="compile kernels when needed"
    )
    parser.add_argument("--no-build", action="store_true", help="use the finepruning that is installed")
    parser.add_argument(
        "--budget", type=float, default=BUDGET_SECONDS, help="seconds after which no row is begun"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the rows that the file has; what ended the process twice is not tried again",
    )
    parser.add_argument("--out", help="where to write the JSON")
    parser.add_argument("--dry-run", action="store_true", help="list the rows and stop; needs no GPU")
    # For the process that measures.
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--restarted", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.densities.sort(reverse=True)
    if options.dry_run:
        every = [row for job in jobs(options) for row in job.rows()]
        not_wanted = [row for job in jobs(options) for row in left_out(job)]
        out = {tuple(row[key] for key in KEY) for row in not_wanted}
        rows = [row for row in every if tuple(row[key] for key in KEY) not in out]
        print("\n".join(text(row) for row in rows + not_wanted))
        print(f"{len(rows)} rows to measure, {len(not_wanted)} left out")
        return 0
    if not torch.cuda.is_available():
        print("gpu.py: PyTorch finds no CUDA device; --dry-run lists the rows", file=sys.stderr)
        return 2
    if options.worker:
        return run(options, begun)
    passed_on = sys.argv[1:] if arguments is None else arguments
    if options.no_build:
        return supervise(passed_on, options, begun)
    with tempfile.TemporaryDirectory() as target:
        install(target)
        return supervise(passed_on, options, begun)


if __name__ == "__main__":
    sys.exit(main())
