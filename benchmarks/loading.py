"""How long a model directory takes until it is ready to run, and how much memory that needs at most.

    python benchmarks/loading.py                      # AlexNet at density 0.05
    python benchmarks/loading.py vgg16 --density 0.1

Each of the runs is a process of its own, which imports everything first, then loads the model and makes the
plan for one image. Peak memory is the rise of the process's peak resident set over what was resident before,
beside file and packed weights, which it may exceed by 64 MiB. After a call, freed memory is given back to the
system: what then stays resident is the standing cost of the model. Goes to benchmarks/results/loading.json.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from finepruning.bench.machine import describe
from finepruning.bench.networks import prune_random
from finepruning.engine import SparseModel

RESULTS = Path(__file__).parent / "results" / "loading.json"
ALLOWANCE = 64 << 20
LIMIT_S = 1.0


def resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak since the last reset), in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def settle() -> int:
    """Give freed memory back, restart the peak, and return what is resident."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident("VmRSS")


def load_once(path: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    before = settle()
    start = time.perf_counter()
    model = SparseModel.from_pretrained(path)
    loaded = time.perf_counter()
    plan = model.plan(1)
    ready = time.perf_counter()
    peak = resident("VmHWM") - before
    model(torch.zeros(1, *model.input_shape))
    called = time.perf_counter()
    return {
        "load_s": loaded - start,
        "ready_s": ready - start,
        "first_call_s": called - ready,
        "peak_bytes": peak,
        "standing_bytes": settle() - before,
        "packed_bytes": sum(step.bytes for step in plan),
    }


def measure(network: str, density: float, runs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        prune_random(network, density).save_pretrained(path)
        file_bytes = sum(file.stat().st_size for file in path.iterdir())
        command = [sys.executable, __file__, "--child", str(path)]
        results = [json.loads(subprocess.check_output(command)) for _ in range(runs)]
    row: dict[str, Any] = {"network": network, "density": density, "runs": runs, "file_bytes": file_bytes}
    for key in ("load_s", "ready_s", "first_call_s"):
        row[key] = round(statistics.median(result[key] for result in results), 3)
    for key in ("peak_bytes", "standing_bytes", "packed_bytes"):
        row[key] = max(result[key] for result in results)
    row["allowed_bytes"] = file_bytes + row["packed_bytes"] + ALLOWANCE
    row["ok"] = row["ready_s"] <= LIMIT_S and row["peak_bytes"] <= row["allowed_bytes"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", nargs="?", default="alexnet")
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--child", metavar="MODEL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(load_once(options.child)))
        return
    row = {**measure(options.network, options.density, options.runs), **describe(torch.device("cpu"), 1)}
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = [
        other for other in rows if (other["network"], other["density"]) != (row["network"], row["density"])
    ]
    RESULTS.write_text(json.dumps({"rows": [*rows, row]}, indent=1) + "\n")
    for key, value in row.items():
        if key.endswith("_bytes"):
            print(f"{key:15} {value / 2**20:9.1f} MiB")
        elif key.endswith("_s") or key == "ok":
            print(f"{key:15} {value}")
    raise SystemExit(not row["ok"])


if __name__ == "__main__":
    main()
