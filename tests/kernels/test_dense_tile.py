"""The rule for tiles of `dense_conv2d` against what was measured."""

import json
import math
from pathlib import Path

import pytest
from finepruning.kernels.dense_tile import cut, dense_tile

RESULTS = Path(__file__).parents[2] / "benchmarks/results/dense_conv2d_tiles_nvidia_h200.json"
LAYER = ("rows", "pixels", "products", "channels", "itemsize")
# What makes two tiles the same but for the number of shares, which were not all timed.
FORM = ("rows", "pixels", "depth", "warps", "stages")


def test_tiles_are_near_the_best_that_was_measured():
    """The rule against the recorded times of all tiles; benchmarks/gpu_tiles.py makes them."""
    names = tuple(vars(cut((1, 1, 1), 1, 1, 1, 1, 1, 1)))
    cases = {}
    for row in json.loads(RESULTS.read_text())["rows"]:
        tile = dict(zip(names, row["tile"], strict=True))
        cases.setdefault(tuple(row[key] for key in LAYER), []).append((tile, row["us"]))
    assert len(cases) == 38
    behind = []
    for layer, timed in cases.items():
        chosen = vars(dense_tile(*layer))
        alike = [
            (abs(math.log(tile["shares"] / chosen["shares"])), us)
            for tile, us in timed
            if all(tile[key] == chosen[key] for key in FORM)
        ]
        behind.append(min(alike)[1] / min(us for _, us in timed))
    assert math.prod(behind) ** (1 / len(behind)) <= 1.06
    assert max(behind) <= 1.3


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize(
    ("rows", "pixels", "products", "channels"),
    [(64, 50176, 27, 3), (1, 1, 1, 1), (512, 49, 4608, 512), (96, 169, 35, 7), (2048, 49, 512, 512)],
)
def test_tiles_cover_the_layer_and_no_share_is_empty(rows, pixels, products, channels, batch, itemsize):
    tile = dense_tile(rows, batch * pixels, products, channels, itemsize)
    assert tile.tiles == -(-rows // tile.rows) * -(-batch * pixels // tile.pixels)
    assert (tile.shares - 1) * tile.turns * tile.depth < products <= tile.shares * tile.turns * tile.depth
    # Processors have 227 KiB of shared memory for a program.
    assert tile.stages * (tile.rows + tile.pixels) * tile.depth * itemsize <= 227 << 10
