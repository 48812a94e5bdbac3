"""How time on the CPU scales with density, batch and threads: results/cpu_scaling.json and its plot.

    python benchmarks/cpu_scaling.py [--subjects alexnet,fc] [--models FOLDER] [--quick]

Rows of other subjects stay in the file, so that a long run can be cut into pieces; FOLDER keeps the pruned
models for the next piece (--prepare only makes them).
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from finepruning import SparseModel
from finepruning.bench import floor, machine
from finepruning.bench.networks import prune_random, prune_uniform
from finepruning.bench.timing import HostStopwatch, interleave

DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
QUICK_DENSITIES, QUICK_BATCHES = (0.3, 0.1, 0.05), (1, 4, 16)
AT_DENSITY, AT_BATCHES = 0.1, (1, 16)  # where the other axis is swept
NOISE = 1.05  # a smaller problem that takes longer by less still counts as monotone
RESULTS = Path(__file__).parent / "results" / "cpu_scaling.json"
PLOT = Path(__file__).parents[1] / "docs" / "cpu_scaling.svg"


@dataclass(frozen=True)
class Layer:
    """A single convolution over a map of ``size``, or (size 0) a fully connected layer."""

    inputs: int
    outputs: int
    kernel: int = 1
    size: int = 0

    def make(self, density: float) -> SparseModel:
        torch.manual_seed(0)
        if self.size == 0:
            layer, shape = nn.Linear(self.inputs, self.outputs), (self.inputs,)
        else:
            layer = nn.Conv2d(self.inputs, self.outputs, self.kernel, padding=self.kernel // 2)  # type: ignore[assignment]
            shape = (self.inputs, self.size, self.size)  # type: ignore[assignment]
        net = nn.Sequential(layer, nn.ReLU()).eval()
        prune_uniform(net, density, first=density)
        return SparseModel.from_dense(net, torch.zeros(1, *shape))


SUBJECTS: dict[str, Callable[[float], SparseModel]] = {
    "alexnet": lambda density: prune_random("alexnet", density),
    "resnet50": lambda density: prune_random("resnet50", density),
    "conv3x3_512_28": Layer(512, 512, 3, 28).make,
    "conv3x3_256_14": Layer(256, 256, 3, 14).make,
    "conv1x1_256_1024_14": Layer(256, 1024, 1, 14).make,
    "fc_9216_4096": Layer(9216, 4096).make,
}


def model(subject: str, density: float, folder: Path) -> SparseModel:
    """The subject at a density, from the folder if it lies there already."""
    path = folder / f"{subject}_{density:g}"
    if not (path / "config.json").exists():
        SUBJECTS[subject](density).save_pretrained(path)
    return SparseModel.from_pretrained(path)


def rows_of(
    subject: str,
    densities: Sequence[float],
    batches: Sequence[int],
    folder: Path,
    threads: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """Times over densities at `AT_BATCHES`, over batches at `AT_DENSITY`, and there also with one thread."""
    rows: list[dict[str, Any]] = []
    models = {density: model(subject, density, folder) for density in densities}
    limits = floor.measure_limits(threads)
    for batch in AT_BATCHES:
        points = [(density, batch, threads) for density in densities]
        rows += timed(subject, "density", models, points, limits, seconds)
    points = [(AT_DENSITY, batch, threads) for batch in batches]
    rows += timed(subject, "batch", models, points, limits, seconds)
    if threads > 1:
        # Each number of threads has a model of its own: a model keeps memory for one.
        for batch in AT_BATCHES:
            pair = {n: {AT_DENSITY: model(subject, AT_DENSITY, folder)} for n in (1, threads)}
            calls = {str(n): caller(pair[n][AT_DENSITY], batch, n)[0] for n in pair}
            times = interleave(calls, stopwatch=HostStopwatch(), seconds=seconds)
            for n in pair:
                rows.append(row(subject, "threads", AT_DENSITY, batch, n, times[str(n)]))
        torch.set_num_threads(threads)
    return rows


def timed(
    subject: str,
    axis: str,
    models: dict[float, SparseModel],
    points: Sequence[tuple[float, int, int]],
    limits: floor.MachineLimits,
    seconds: float,
) -> list[dict[str, Any]]:
    """One row a point (density, batch, threads), all of them timed in turns."""
    calls, floors = {}, {}
    for point in points:
        density, batch, threads = point
        calls[str(point)], reports = caller(models[density], batch, threads)
        floors[str(point)] = floor.network_floor_ms(reports, limits)
    times = interleave(calls, stopwatch=HostStopwatch(), seconds=seconds)
    return [
        {**row(subject, axis, *point, times[str(point)]), "floor_ms": floors[str(point)]} for point in points
    ]


def caller(sparse: SparseModel, batch: int, threads: int) -> tuple[Callable[[], Any], Any]:
    """A call of the model at a batch size, and its plan; the model keeps fewer plans than there are sizes."""
    torch.set_num_threads(threads)
    executor = sparse._executor(batch)
    x = torch.rand(batch, *sparse.input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def call() -> Any:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        return executor(x)

    return call, executor.report()


def row(subject: str, axis: str, density: float, batch: int, threads: int, timing: Any) -> dict[str, Any]:
    return {
        "subject": subject,
        "axis": axis,
        "density": density,
        "batch": batch,
        "threads": threads,
        "median_ms": timing.median_ms,
        "p20_ms": timing.p20_ms,
        "p80_ms": timing.p80_ms,
    }


def findings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Where time is not monotone, the worst step between neighbouring batch sizes, and what threads gain."""
    found = []
    for subject in dict.fromkeys(r["subject"] for r in rows):
        own = [r for r in rows if r["subject"] == subject]
        for batch in AT_BATCHES:
            line = [r for r in own if r["axis"] == "density" and r["batch"] == batch]
            line.sort(key=lambda r: r["density"])
            found += [
                f"{subject}, batch {batch}: density {a['density']:g} takes {a['median_ms']:.3f} ms, "
                f"{b['density']:g} only {b['median_ms']:.3f}"
                for a, b in pairwise(line)
                if a["median_ms"] > NOISE * b["median_ms"]
            ]
        line = sorted((r for r in own if r["axis"] == "batch"), key=lambda r: r["batch"])
        found += [
            f"{subject}, density {AT_DENSITY:g}: batch {a['batch']} takes {a['median_ms']:.3f} ms, "
            f"{b['batch']} only {b['median_ms']:.3f}"
            for a, b in pairwise(line)
            if a["median_ms"] > NOISE * b["median_ms"]
        ]
        cliffs = [
            (b["median_ms"] / b["batch"] / (a["median_ms"] / a["batch"]), a["batch"], b["batch"])
            for a, b in pairwise(line)
        ]
        if cliffs and max(cliffs)[0] > NOISE:
            ratio, small, large = max(cliffs)
            found.append(
                f"{subject}: an image takes {ratio:.2f} times as long at batch {large} as at batch {small}"
            )
        for batch in AT_BATCHES:
            threads = {
                r["threads"]: r["median_ms"] for r in own if r["axis"] == "threads" and r["batch"] == batch
            }
            if len(threads) > 1:
                most = max(threads)
                found.append(
                    f"{subject}, batch {batch}: {threads[1] / threads[most]:.2f} times as fast with {most} "
                    "threads as with 1"
                )
    return found


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Time against density at both batches, time of an image against batch; logarithmic axes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "cpu_scaling"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.2), constrained_layout=True)
    panels: tuple[
        tuple[str, Callable[[dict[str, Any]], bool], str, Callable[[dict[str, Any]], float]], ...
    ] = (
        *(
            (
                f"batch {b}: ms",
                lambda r, b=b: r["axis"] == "density" and r["batch"] == b,
                "density",
                lambda r: r["median_ms"],
            )  # type: ignore[misc]
            for b in AT_BATCHES
        ),
        (
            f"density {AT_DENSITY:g}: ms an image",
            lambda r: r["axis"] == "batch",
            "batch",
            lambda r: r["median_ms"] / r["batch"],
        ),
    )
    for axis, (title, wanted, key, value) in zip(axes, panels, strict=True):
        for subject in SUBJECTS:
            line = sorted((r for r in rows if r["subject"] == subject and wanted(r)), key=lambda r: r[key])
            if line:
                axis.plot([r[key] for r in line], [value(r) for r in line], marker="o", ms=3, label=subject)
        ticks = sorted({r[key] for r in rows if wanted(r)})
        axis.set(xscale="log", yscale="log", title=title, xlabel=key)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=7)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--subjects", default=",".join(SUBJECTS), help=f"by commas, of {', '.join(SUBJECTS)}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.5, help="timed seconds wanted a point")
    parser.add_argument("--models", type=Path, help="folder that keeps the pruned models")
    parser.add_argument("--prepare", action="store_true", help="only make the models")
    parser.add_argument("--quick", action="store_true", help="few points, to try the script")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PLOT)
    arguments = parser.parse_args()
    densities, batches = (QUICK_DENSITIES, QUICK_BATCHES) if arguments.quick else (DENSITIES, BATCHES)
    console = Console(highlight=False)
    torch.set_num_threads(arguments.threads)
    known = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        folder = arguments.models or Path(temporary)
        for subject in arguments.subjects.split(","):
            if arguments.prepare:
                for density in densities:
                    model(subject, density, folder)
                continue
            fresh = rows_of(subject, densities, batches, folder, arguments.threads, arguments.seconds)
            about = machine.describe(torch.device("cpu"), arguments.threads)
            for item in fresh:
                item["date"], item["commit"] = about["date"], about["commit"]
            known = [r for r in known if r["subject"] != subject] + fresh
            head = {key: about[key] for key in ("machine", "versions")}
            result = {**head, "findings": findings(known), "rows": known}
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")
            for line in findings(fresh):
                console.print(line, soft_wrap=True)
    if known and not arguments.prepare:
        assert all(math.isfinite(r["median_ms"]) for r in known)
        plot(known, arguments.plot)
        console.print(f"stored in {arguments.out} and {arguments.plot}")


if __name__ == "__main__":
    main()
