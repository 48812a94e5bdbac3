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

from finepruning import models
from finepruning.bench.networks import prune_uniform
from finepruning.engine import cuda_choice, cuda_program, cuda_roofline, cuda_weights
from finepruning.engine.capture import capture
from finepruning.engine.fuse import fuse
from finepruning.sparse.csr import CSR

DTYPES = {"float16": torch.float16, "float32": torch.float32}
CPU = torch.device("cpu")


def rows(name: str, density: float, dtypes: list[str], batches: list[int]) -> None:
    network = models.create(name, 1000, "none", 0)
    prune_uniform(network.module, density)
    size = network.image_size
    for label in dtypes:
        dtype = DTYPES[label]
        graph, tensors = capture(network.module.eval(), (3, size, size), dtype)
        order = "channels_last" if dtype is torch.float16 else "contiguous"
        for batch in batches:
            plan = fuse(graph, tensors, batch, dtype)
            layers = cuda_choice.layers(plan)
            times = {layer.name: cuda_roofline.seconds(layer, cuda_roofline.H200) for layer in layers}
            chosen = cuda_choice.choose(layers, times)
            ours = sum(times[key][choice.method] for key, choice in chosen.items())
            dense = sum(times[layer.name]["dense"] for layer in layers)
            weights = dense_weights = 0
            for step in plan.steps:
                if not isinstance(step.weight, CSR):
                    continue
                full = step.weight.rows * step.weight.columns * dtype.itemsize
                dense_weights += full
                sparse = chosen[step.name].method != "dense"
                weights += cuda_weights.packed(step.weight, dtype, CPU).nbytes if sparse else full
            layout = cuda_program.lay_out(plan, chosen, order)
            bare = cuda_program.lay_out(plan, {}, order)
            peak = (weights + layout.arena_bytes + layout.input_bytes) / (
                dense_weights + bare.arena_bytes + bare.input_bytes
            )
            kinds = Counter(choice.method for choice in chosen.values())
            methods = " ".join(f"{kind} {kinds[kind]}" for kind in cuda_choice.METHODS if kinds[kind])
            print(
                f"| {name} | {density:.2f} | {label} | {batch} | {methods} | {dense / ours:.2f} | "
                f"{weights / dense_weights:.3f} | {peak:.3f} |",
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
    print("| network | density | dtype | batch | layers | modelled speedup | weights | weights + arena |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.networks:
        for density in options.densities:
            rows(name, density, options.dtypes, options.batches)


if __name__ == "__main__":
    main()
