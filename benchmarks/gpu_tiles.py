"""Time every tile of the sparse convolution on layers of three networks, and what the rule chooses.

    python benchmarks/gpu_tiles.py                    # builds, times
    python benchmarks/gpu_tiles.py --no-build         # with the finepruning that is installed

Writes benchmarks/results/sparse_conv2d_tiles_<gpu>.json.
float16, random patterns, hot caches: the median of five CUDA graphs of ten launches each. A tile whose output
is wrong is not timed. `tests/kernels/test_conv2d.py` holds the rule of `conv2d_tile` to the recorded times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from gpu import ROOT, describe, install

# name, output channels, input channels, kernel, padding, size of the square map
LAYERS = (
    ("alexnet conv2", 192, 64, 5, 2, 27),
    ("alexnet conv3", 384, 192, 3, 1, 13),
    ("alexnet conv4", 256, 384, 3, 1, 13),
    ("vgg16 conv1_2", 64, 64, 3, 1, 224),
    ("vgg16 conv2_2", 128, 128, 3, 1, 112),
    ("vgg16 conv3_2", 256, 256, 3, 1, 56),
    ("vgg16 conv4_2", 512, 512, 3, 1, 28),
    ("vgg16 conv5_1", 512, 512, 3, 1, 14),
    ("resnet50 layer3 3x3", 256, 256, 3, 1, 14),
    ("resnet50 layer3 1x1", 1024, 256, 1, 0, 14),
    ("resnet50 layer4 3x3", 512, 512, 3, 1, 7),
    ("resnet50 layer1 1x1", 256, 64, 1, 0, 56),
)
DENSITIES = {1: (0.10, 0.05), 8: (0.10,)}
MAX_ERROR = 1e-2
LAUNCHES = 10


def tiles(run: int) -> list[Any]:
    """Every tile that a thread has registers for."""
    from finepruning.kernels.conv2d_tile import Tile

    shapes = ((1, 1), (1, 2), (1, 4), (1, 8), (4, 4), (8, 8))
    return [
        Tile(runs, run, rows, warps // rows * unroll, warps)
        for runs, (rows, warps), unroll in itertools.product((1, 2, 4, 8, 16), shapes, (1, 2))
        if runs * (run // 32) * unroll <= 32
    ]


def rows(layer: tuple[str, int, int, int, int, int], density: float, batch: int) -> list[dict[str, Any]]:
    """The times of one layer, a row a tile."""
    from finepruning.kernels import conv2d, layout
    from finepruning.kernels.sliced_ell import pack, to_device

    from finepruning.bench.cuda import relative_error

    name, out, into, size, padding, width = layer
    device = torch.device("cuda", 0)
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(out, into * size * size, generator=generator) < density
    dense = torch.randn(kept.shape, generator=generator) * kept
    rowptr = torch.zeros(out + 1, dtype=torch.int32)
    rowptr[1:] = kept.sum(1).cumsum(0)
    columns = kept.nonzero()[:, 1]
    weight = to_device(pack(dense[kept], columns, rowptr, kept.shape[1], dtype=torch.float16), device)
    shape = (batch, into, width, width)
    memory = torch.zeros(layout.numel(shape, padding), dtype=torch.float16, device=device)
    x = layout.view(memory, shape, padding).normal_()
    filters = dense.view(out, into, size, size).to(device)
    expected = torch.nn.functional.conv2d(x.float(), filters, padding=padding)
    y = layout.empty(tuple(expected.shape), dtype=torch.float16, device=device)
    outputs = batch * math.prod(expected.shape[2:])
    run = conv2d.run_length(x)
    result = []
    rule = conv2d.tile_shape
    for tile in tiles(run):
        conv2d.tile_shape = lambda *_, tile=tile: tile  # type: ignore[assignment]
        try:
            y.fill_(float("nan"))
            conv2d.sparse_conv2d(x, weight, y, kernel=(size, size), padding=(padding, padding))
            error = relative_error(y, expected)
            microseconds = None
            if error <= MAX_ERROR:
                microseconds = timed(
                    lambda: conv2d.sparse_conv2d(
                        x, weight, y, kernel=(size, size), padding=(padding, padding)
                    )
                )
        finally:
            conv2d.tile_shape = rule
        result.append(
            {
                "layer": name,
                "density": density,
                "batch": batch,
                "rows": out,
                "stored": weight.values.numel(),
                "outputs": outputs,
                "run": run,
                "itemsize": 2,
                "tile": [tile.runs, tile.run, tile.rows, tile.split, tile.warps],
                "relative_error": error,
                "us": microseconds,
            }
        )
    return result


def timed(launch: Any) -> float:
    """Microseconds of one launch."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            launch()
    graph.replay()
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / LAUNCHES * 1e3)
    return sorted(times)[2]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-build", action="store_true", help="use the finepruning that is installed")
    parser.add_argument("--out", help="where to write the JSON")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_tiles.py: PyTorch finds no CUDA device", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as target:
        if not options.no_build:
            install(target)
        from finepruning.kernels.conv2d_tile import tile_shape

        name = torch.cuda.get_device_name()
        slug = name.lower().replace(" ", "_")
        path = Path(options.out or ROOT / "benchmarks/results" / f"sparse_conv2d_tiles_{slug}.json")
        result = {**describe(name), "rows": []}
        for batch, densities in DENSITIES.items():
            for layer, density in itertools.product(LAYERS, densities):
                found = rows(layer, density, batch)
                result["rows"] += found
                good = [row for row in found if row["us"] is not None]
                if not good:
                    print(f"{layer[0]:20} {density:.2f} b{batch}: no tile gave the right output")
                    continue
                best = min(good, key=lambda row: row["us"])
                tile = tile_shape(*(best[key] for key in ("rows", "stored", "outputs", "run", "itemsize")))
                mine = [row for row in good if row["tile"] == list(vars(tile).values())]
                chosen = f"{mine[0]['us']:.1f} us {mine[0]['tile']}" if mine else "not among those that ran"
                print(
                    f"{layer[0]:20} {density:.2f} b{batch}: best {best['us']:.1f} us {best['tile']}, "
                    f"the rule's {chosen}",
                    flush=True,
                )
                path.write_text(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
