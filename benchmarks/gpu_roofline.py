"""What the roofline model expects of an H200, and the memory that plans need: arithmetic, no GPU.

    python benchmarks/gpu_roofline.py

Times are of the model that decides where nothing was measured, not measurements. Bytes are exact: weights as
they are packed, activations and scratch as they are laid out; workspaces of cuDNN and cuBLAS come on top on
both sides. Dense bytes: all weights, and the same layout with every layer dense.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter

os.environ["TRITON_INTERPRET"] = "1"  # kernels are imported, not run

import torch

from finepruning.bench.cuda_outline import Outline, modelled, shares
from finepruning.engine import cuda_choice

DTYPES = {"float16": torch.float16, "float32": torch.float32}


def rows(outline: Outline, name: str, density: float, dtypes: list[str], batches: list[int]) -> None:
    for label in dtypes:
        for batch in batches:
            plan = outline.plan(density, batch, DTYPES[label])
            chosen, ours, dense = modelled(plan)
            weights, peak = shares(plan, chosen)
            kinds = Counter(choice.method for choice in chosen.values())
            methods = " ".join(f"{kind} {kinds[kind]}" for kind in cuda_choice.METHODS if kinds[kind])
            print(
                f"| {name} | {density:.2f} | {label} | {batch} | {methods} | {dense * 1e6:.0f} | "
                f"{ours * 1e6:.0f} | {dense / ours:.2f} | {weights:.3f} | {peak:.3f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["alexnet", "vgg16", "resnet50"])
    parser.add_argument("--densities", nargs="+", type=float, default=[0.10, 0.05])
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64, 256])
    options = parser.parse_args()
    print(
        "| network | density | dtype | batch | layers | modelled us, dense | ours | speedup | weights | "
        "weights + arena |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in options.networks:
        outline = Outline(name)
        for density in options.densities:
            rows(outline, name, density, options.dtypes, options.batches)


if __name__ == "__main__":
    main()
