"""Runs every torchvision classifier through the engine and compares it with the masked dense network.

    python benchmarks/torchvision_models.py                      # all that have no row yet
    python benchmarks/torchvision_models.py alexnet resnet18     # only these, measured again
    python benchmarks/torchvision_models.py --one-each-family
    python benchmarks/torchvision_models.py --preparation near_dead   # see random_networks.py
    python benchmarks/torchvision_models.py vgg16 --density 0.05            # file size at another density
    python benchmarks/torchvision_models.py --document           # only write docs/torchvision.md

Weights are random, pruned by magnitude and scaled to keep activations alive, so that an error anywhere
reaches the output (benchmarks/random_networks.py). Each network goes through a model directory and back.
Outputs are compared with those of the masked dense network in PyTorch's float32, and both with those in
float64. Rows are added to benchmarks/results/torchvision_models.json as they come; a network measured again
with the same preparation and density replaces its row.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from random_networks import PREPARATIONS, candidates, family, has_norms, prepared

from finepruning.bench.machine import describe
from finepruning.engine import SparseModel
from finepruning.errors import CaptureError

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "torchvision_models.json"
DOCUMENT = ROOT.parent / "docs" / "torchvision.md"
TOLERANCE = 1e-4
LEAST_SPREAD = 1e-3


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def measure(name: str, parameters: int, preparation: str, density: float, size: int) -> dict[str, Any]:
    """One row without its context: errors for batch 1 and 3, file bytes, what was left to ATen operations."""
    module = prepared(name, preparation, density, size)
    row: dict[str, Any] = {
        "network": name,
        "preparation": preparation,
        "density": density,
        "parameters": parameters,
        "image_size": size,
    }
    try:
        start = time.perf_counter()
        captured = SparseModel.from_dense(module, torch.zeros(1, 3, size, size))
        row["capture_s"] = round(time.perf_counter() - start, 2)
        with tempfile.TemporaryDirectory() as folder:
            captured.save_pretrained(Path(folder) / "model")
            del captured
            start = time.perf_counter()
            model = SparseModel.from_pretrained(Path(folder) / "model")
            row["load_s"] = round(time.perf_counter() - start, 3)
            row["file_bytes"] = sum(file.stat().st_size for file in (Path(folder) / "model").iterdir())
    except CaptureError as error:
        return {**row, "status": "not captured", "reason": str(error)}
    row["file_ratio"] = round(row["file_bytes"] / (4 * parameters), 4)
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        dense = module(x)
        row["error_batch_1"] = relative(model(x[:1]), module(x[:1]))
        ours = model(x)
        row["error_batch_3"] = relative(ours, dense)
        exact = module.double()(x.double())
    row["error_float64"] = relative(ours, exact)
    row["torch_error_float64"] = relative(dense, exact)
    # How much of the output depends on the image at all: near 0 would make the comparison empty.
    row["spread"] = relative(dense[0], dense[1])
    steps = model.plan(3)
    row["steps"] = len(steps)
    row["aten_steps"] = sum(step.op == "aten" for step in steps)
    row["sparse_layers"] = sum(step.nnz is not None and step.nnz != step.size for step in steps)
    row["status"] = status(row)
    return row


def status(row: dict[str, Any]) -> str:
    """ "ok", "ill-conditioned" (PyTorch's float32 is as far from float64 as ours is), or what is wrong."""
    if not row["spread"] > LEAST_SPREAD:
        return "output hardly depends on the image"
    if max(row["error_batch_1"], row["error_batch_3"]) <= TOLERANCE:
        return "ok"
    if row["error_float64"] <= 2 * row["torch_error_float64"]:
        return "ill-conditioned"
    return "wrong"


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["preparation"], row["density"], row["parameters"], row["network"])


def stored() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []


def store(row: dict[str, Any]) -> None:
    rows = [other for other in stored() if key(other) != key(row)] + [row]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"tolerance": TOLERANCE, "rows": sorted(rows, key=key)}, indent=1) + "\n")


def line(row: dict[str, Any]) -> str:
    head = f"{row['network']:22} {row['parameters'] / 1e6:7.1f} {row['image_size']:5}"
    if row["status"] == "not captured":
        return f"{head}  not captured: {row['reason']}"
    errors = " ".join(f"{row[name]:9.1e}" for name in ERRORS)
    counts = f"{row['spread']:7.3f} {row['file_ratio']:6.3f} {row['steps']:5} {row['aten_steps']:5}"
    return f"{head} {errors} {counts}  {row['status']}"


ERRORS = ("error_batch_1", "error_batch_3", "error_float64", "torch_error_float64")


def document(rows: list[dict[str, Any]]) -> str:
    """docs/torchvision.md: one table a preparation and density."""
    lines = [
        "# torchvision's classifiers",
        "",
        "Written by `python benchmarks/torchvision_models.py --document` from "
        "`benchmarks/results/torchvision_models.json`,",
        "which also holds machine, versions, commit and date of every row.",
        "",
        "Every classifier up to 200 M parameters that torchvision lists, with random weights pruned by",
        "magnitude, captured, saved and loaded again. Errors are norms of differences over norms of outputs:",
        "to the masked dense network in PyTorch's float32 at batch 1 and 3, and of both to that network in",
        "float64 (batch 3). *File* is the model directory over four bytes a parameter, *ATen* the steps of",
        "the plan that run as PyTorch operations. How norms are prepared, and what ill-conditioned means:",
        '[Measuring](benchmarking.md), "Where outputs differ".',
    ]
    groups = dict.fromkeys((row["preparation"], row["density"]) for row in rows)
    for preparation, density in groups:
        group = [row for row in rows if (row["preparation"], row["density"]) == (preparation, density)]
        passed = sum(row["status"] == "ok" for row in group)
        lines += [
            "",
            f"## Norms {preparation}, density {density:g}: {passed} of {len(group)} within {TOLERANCE:g}",
            "",
            "| network | M parameters | pixels | batch 1 | batch 3 | ours, float64 | torch, float64 | file "
            "| steps | ATen | |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|",
        ]
        for row in group:
            start = f"| {row['network']} | {row['parameters'] / 1e6:.1f} | {row['image_size']}"
            if row["status"] == "not captured":
                lines.append(f"{start} | | | | | | | | not captured: {row['reason']} |")
                continue
            errors = " | ".join(f"{row[name]:.1e}" for name in ERRORS)
            counts = f"{row['file_ratio']:.3f} | {row['steps']} | {row['aten_steps']}"
            lines.append(f"{start} | {errors} | {counts} | {row['status']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="networks; default all that have no row yet")
    parser.add_argument("--one-each-family", action="store_true", help="the smallest of each family")
    parser.add_argument("--preparation", choices=PREPARATIONS, default="calibrated", help="of the norms")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--size", type=int, default=224, help="image side in pixels, where a network is free")
    parser.add_argument("--document", action="store_true", help="measure nothing, write docs/torchvision.md")
    options = parser.parse_args()
    if options.document:
        DOCUMENT.write_text(document(stored()))
        return
    warnings.simplefilter("ignore")
    sizes = candidates()
    names = options.names or list(sizes)
    if options.one_each_family:
        names = list({family(name): name for name in reversed(names)}.values())[::-1]
    if options.preparation != "calibrated":
        names = [name for name in names if has_norms(name)]  # the others would be the same again
    if not options.names:
        known = {row["network"] for row in stored() if key(row)[:2] == (options.preparation, options.density)}
        names = [name for name in names if name not in known]
    columns = ("network", "M par.", "size", "error b1", "error b3", "ours 64", "torch 64", "spread", "file")
    print("{:22} {:>7} {:>5} {:>9} {:>9} {:>9} {:>9} {:>7} {:>6} steps  aten".format(*columns))
    wrong = 0
    context = describe(torch.device("cpu"), torch.get_num_threads())
    for name in names:
        size = 224 if name.startswith(("vit", "maxvit")) else options.size  # these accept no other
        row = measure(name, sizes[name], options.preparation, options.density, size)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        store({**row, **context, "date": now})
        wrong += row["status"] != "ok"
        print(line(row), flush=True)
        gc.collect()
    print(f"{len(names)} networks, {wrong} not ok")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
