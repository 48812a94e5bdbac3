"""Time every tile of a convolution on layers of three networks, and what the rule chooses.

    python benchmarks/gpu_tiles.py                        # builds, times sparse_conv2d
    python benchmarks/gpu_tiles.py --kernel dense_conv2d  # the one on tensor cores
    python benchmarks/gpu_tiles.py --no-build             # with the finepruning that is installed

Writes benchmarks/results/<kernel>_tiles_<gpu>.json. Compiling takes most of the time: minutes.
float16, random patterns, hot caches: the median of five CUDA graphs of ten launches each. A tile whose output
is wrong is not timed. Tests hold the rules of `conv2d_tile` and `dense_tile` to the recorded times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterator
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
# As above, with a stride after the kernel.
DENSE_LAYERS = (
    ("alexnet conv1", 64, 3, 11, 4, 2, 224),
    ("alexnet conv2", 192, 64, 5, 1, 2, 27),
    ("alexnet conv3", 384, 192, 3, 1, 1, 13),
    ("alexnet conv4", 256, 384, 3, 1, 1, 13),
    ("alexnet conv5", 256, 256, 3, 1, 1, 13),
    ("resnet50 conv1", 64, 3, 7, 2, 3, 224),
    ("resnet50 layer1 3x3", 64, 64, 3, 1, 1, 56),
    ("resnet50 layer1 1x1 up", 256, 64, 1, 1, 0, 56),
    ("resnet50 layer1 1x1 down", 64, 256, 1, 1, 0, 56),
    ("resnet50 layer2 3x3", 128, 128, 3, 1, 1, 28),
    ("resnet50 layer2 1x1 up", 512, 128, 1, 1, 0, 28),
    ("resnet50 layer2 1x1 down", 128, 512, 1, 1, 0, 28),
    ("resnet50 layer3 3x3", 256, 256, 3, 1, 1, 14),
    ("resnet50 layer3 1x1 up", 1024, 256, 1, 1, 0, 14),
    ("resnet50 layer3 1x1 down", 256, 1024, 1, 1, 0, 14),
    ("resnet50 layer4 3x3", 512, 512, 3, 1, 1, 7),
    ("resnet50 layer4 1x1 up", 2048, 512, 1, 1, 0, 7),
    ("resnet50 layer4 1x1 down", 512, 2048, 1, 1, 0, 7),
    ("vgg16 conv1_1", 64, 3, 3, 1, 1, 224),
    ("vgg16 conv1_2", 64, 64, 3, 1, 1, 224),
    ("vgg16 conv2_2", 128, 128, 3, 1, 1, 112),
    ("vgg16 conv3_2", 256, 256, 3, 1, 1, 56),
    ("vgg16 conv4_2", 512, 512, 3, 1, 1, 28),
    ("vgg16 conv5_1", 512, 512, 3, 1, 1, 14),
)
# rows, pixels, products at a time, warps, stages
DENSE_FORMS = (
    *((64, pixels, 64, 4, 4) for pixels in (16, 32, 64, 128)),
    *((64, pixels, 64, 4, 3) for pixels in (64, 128)),
    *((64, pixels, 128, 4, 3) for pixels in (16, 32, 64)),
    *((128, 64, 64, warps, 4) for warps in (4, 8)),
    *((128, 128, 64, 8, stages) for stages in (3, 4)),
    *((rows, 256, 64, 8, 3) for rows in (64, 128)),
    (64, 64, 32, 4, 4),
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


def sparse_rows(
    layer: tuple[str, int, int, int, int, int], density: float, batch: int
) -> list[dict[str, Any]]:
    """The times of one layer by `sparse_conv2d`, a row a tile."""
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


def dense_tiles(shape: tuple[int, int, int], channels: int) -> list[Any]:
    """Every form, with no shares, as many as occupy each processor once or twice, and half as many."""
    from finepruning.kernels.common import PROCESSORS
    from finepruning.kernels.dense_tile import cut

    out, pixels, _ = shape
    found = {}
    for rows, width, depth, warps, stages in DENSE_FORMS:
        if rows > max(out, 64) or width > 2 * pixels or (depth == 32 and channels % 32 == 0):
            continue
        tiles = -(-out // rows) * -(-pixels // width)
        once = max(1, PROCESSORS // tiles)
        for shares in (1, once // 2, once, 2 * PROCESSORS // tiles):
            tile = cut(shape, rows, width, depth, shares, warps, stages)
            found[tile] = None
    return list(found)


def dense_rows(layer: tuple[str, int, int, int, int, int, int], batch: int) -> list[dict[str, Any]]:
    """The times of one layer by `dense_conv2d`, a row a tile; and the library's."""
    import torch.nn.functional as F
    from finepruning.kernels.dense_conv2d import dense_conv2d

    from finepruning.bench.cuda import relative_error

    name, out, into, size, stride, padding, width = layer
    device = torch.device("cuda", 0)
    torch.manual_seed(0)
    last = torch.channels_last
    x = torch.randn(batch, into, width, width, device=device).half().contiguous(memory_format=last)
    products = into * size * size
    matrix = (torch.randn(out, products, device=device) * products**-0.5).half()
    filters = matrix.view(out, size, size, into).permute(0, 3, 1, 2)
    bias = torch.randn(out, device=device).half()
    expected = torch.relu(F.conv2d(x.float(), filters.float(), bias.float(), stride, padding))
    y = torch.empty_like(expected, dtype=torch.float16, memory_format=last)
    pixels = batch * expected.shape[2] * expected.shape[3]
    common = {
        "layer": name,
        "batch": batch,
        "rows": out,
        "pixels": pixels,
        "products": products,
        "channels": into,
        "itemsize": 2,
        "library_us": timed(lambda: F.conv2d(x, filters, None, stride, padding)),
        "library_finished_us": timed(lambda: torch.relu(F.conv2d(x, filters, bias, stride, padding))),
    }
    result = []
    for tile in dense_tiles((out, pixels, products), into):
        partial = torch.empty(max(tile.partial, 1), device=device)
        arrived = torch.zeros(tile.tiles, dtype=torch.int32, device=device)

        def launch(tile: Any = tile, partial: Any = partial, arrived: Any = arrived) -> None:
            geometry = {"kernel": (size, size), "stride": (stride, stride), "padding": (padding, padding)}
            dense_conv2d(x, matrix, y, partial, arrived, bias=bias, activation="relu", tile=tile, **geometry)

        y.fill_(float("nan"))
        launch()
        error = relative_error(y, expected)
        microseconds = timed(launch) if error <= MAX_ERROR else None
        row = {"tile": list(vars(tile).values()), "relative_error": error, "us": microseconds}
        result.append(common | row)
    return result


def timed(launch: Any) -> float:
    """Microseconds of one launch."""
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        launch()
    stream.synchronize()
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
    parser.add_argument("--kernel", default="sparse_conv2d", choices=["sparse_conv2d", "dense_conv2d"])
    parser.add_argument("--no-build", action="store_true", help="use the finepruning that is installed")
    parser.add_argument("--out", help="where to write the JSON")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_tiles.py: PyTorch finds no CUDA device", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as target:
        if not options.no_build:
            install(target)
        name = torch.cuda.get_device_name()
        slug = name.lower().replace(" ", "_")
        path = Path(options.out or ROOT / "benchmarks/results" / f"{options.kernel}_tiles_{slug}.json")
        result = {**describe(name), "rows": []}
        for what, found, chosen in cases(options.kernel):
            result["rows"] += found
            print(f"{what}: {outcome(found, chosen)}", flush=True)
            path.write_text(json.dumps(result) + "\n")
    return 0


def cases(kernel: str) -> Iterator[tuple[str, list[dict[str, Any]], list[int]]]:
    """(case, its rows, the tile of the rule), one case after the other."""
    from finepruning.kernels.conv2d_tile import tile_shape
    from finepruning.kernels.dense_tile import dense_tile

    if kernel == "sparse_conv2d":
        for batch, densities in DENSITIES.items():
            for layer, density in itertools.product(LAYERS, densities):
                found = sparse_rows(layer, density, batch)
                key = (found[0][name] for name in ("rows", "stored", "outputs", "run", "itemsize"))
                yield f"{layer[0]:20} {density:.2f} b{batch}", found, list(vars(tile_shape(*key)).values())
    else:
        torch.backends.cudnn.benchmark = True
        for batch, dense_layer in itertools.product((1, 8, 64), DENSE_LAYERS):
            found = dense_rows(dense_layer, batch)
            key = (found[0][name] for name in ("rows", "pixels", "products", "channels", "itemsize"))
            yield f"{dense_layer[0]:26} b{batch}", found, list(vars(dense_tile(*key)).values())


def outcome(rows: list[dict[str, Any]], chosen: list[int]) -> str:
    """The best tile of a case and the rule's."""
    good = [row for row in rows if row["us"] is not None]
    if not good:
        return "no tile gave the right output"
    best = min(good, key=lambda row: row["us"])
    mine = [row for row in good if row["tile"] == chosen]
    rule = f"{mine[0]['us']:.1f} us" if mine else "not among those that ran"
    return f"best {best['us']:.1f} us {best['tile']}, the rule's {chosen} {rule}"


if __name__ == "__main__":
    sys.exit(main())
