"""Whether PyTorch's threads and the kernels' get in each other's way: results/cpu_threads.json.

    python benchmarks/cpu_threads.py [--networks alexnet,resnet50]

Runs a pruned network and a dense PyTorch operation apart and in turns. Two pools of threads whose idle
members spin would slow the turns down; one pool leaves them at the sum of both. Caches cost a little: each
has to bring its data back. Also lists the OpenMP runtimes of the process.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import threadpoolctl
import torch
from rich.console import Console

from finepruning.bench import machine
from finepruning.bench.networks import prune_random
from finepruning.bench.timing import HostStopwatch, interleave

RESULTS = Path(__file__).parent / "results" / "cpu_threads.json"
OPERATIONS: dict[str, Callable[[], Callable[[], Any]]] = {
    "conv2d 64x56x56": lambda: _convolution(64, 56),
    "matmul 1024": lambda: _product(1024),
    "add 1e6": lambda: _sum(1_000_000),
}


def _convolution(channels: int, size: int) -> Callable[[], Any]:
    x, weight = torch.randn(1, channels, size, size), torch.randn(channels, channels, 3, 3)
    return lambda: torch.conv2d(x, weight, padding=1)


def _product(size: int) -> Callable[[], Any]:
    a, b = torch.randn(size, size), torch.randn(size, size)
    return lambda: a @ b


def _sum(size: int) -> Callable[[], Any]:
    a, b = torch.randn(size), torch.randn(size)
    return lambda: a + b


def rows(network: str, batch: int, threads: int, seconds: float) -> list[dict[str, Any]]:
    """One row an operation: medians apart and in turns, and the latter over the sum of the former."""
    model = prune_random(network, 0.1)
    x = torch.randn(batch, *model.input_shape)
    found = []
    for name, make in OPERATIONS.items():
        theirs = make()

        def both(theirs: Callable[[], Any] = theirs) -> None:
            model(x)
            theirs()

        calls = {"ours": lambda: model(x), "theirs": theirs, "both": both}
        times = interleave(calls, stopwatch=HostStopwatch(), seconds=seconds)
        apart = times["ours"].median_ms + times["theirs"].median_ms
        found.append(
            {
                "network": network,
                "batch": batch,
                "operation": name,
                "threads": threads,
                "ours_ms": times["ours"].median_ms,
                "theirs_ms": times["theirs"].median_ms,
                "both_ms": times["both"].median_ms,
                "ratio": times["both"].median_ms / apart,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--networks", default="alexnet,resnet50", help="torchvision classifiers, by commas")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(highlight=False)
    found: list[dict[str, Any]] = []
    with torch.inference_mode():
        for network in arguments.networks.split(","):
            for batch in (1, 16):
                found += rows(network, batch, arguments.threads, arguments.seconds)
    for row in found:
        console.print(
            f"{row['network']}, batch {row['batch']}, {row['operation']}: {row['ours_ms']:.3f} and "
            f"{row['theirs_ms']:.3f} ms apart, {row['both_ms']:.3f} in turns, {row['ratio']:.3f} times both",
            soft_wrap=True,
        )
    pools = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "openmp"]
    names = [Path(pool["filepath"]).name for pool in pools]
    console.print(f"OpenMP runtimes in this process: {', '.join(names)}")
    about = machine.describe(torch.device("cpu"), arguments.threads, ["threadpoolctl"])
    arguments.out.write_text(json.dumps({**about, "openmp": names, "rows": found}, indent=1) + "\n")
    console.print(f"stored in {arguments.out}")


if __name__ == "__main__":
    main()
