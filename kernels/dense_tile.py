"""How `dense_conv2d` cuts a layer into programs."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from finepruning.kernels.common import PROCESSORS


@dataclass(frozen=True)
class DenseTile:
    """The work of one program.

    Attributes:
        rows, pixels: of the output. depth: products (tap, channel) that are multiplied at a time.
        turns: how many times. shares: programs that share the sum of one tile of the output.
        tiles: of the output. warps, stages: of the program; turns whose loads are under way.
    """

    rows: int
    pixels: int
    depth: int
    turns: int
    shares: int
    tiles: int
    warps: int
    stages: int

    @property
    def partial(self) -> int:
        """Elements of the shares' sums."""
        return self.tiles * self.shares * self.rows * self.pixels if self.shares > 1 else 0


def cut(
    shape: tuple[int, int, int], rows: int, pixels: int, depth: int, shares: int, warps: int, stages: int
) -> DenseTile:
    """The tile of these sizes for a layer of ``shape`` (rows, pixels, products); no share is left empty."""
    turns = -(-shape[2] // depth)
    per_share = -(-turns // max(1, min(shares, turns)))
    tiles = -(-shape[0] // rows) * -(-shape[1] // pixels)
    return DenseTile(rows, pixels, depth, per_share, -(-turns // per_share), tiles, warps, stages)


@functools.cache
def dense_tile(rows: int, pixels: int, products: int, channels: int, itemsize: int) -> DenseTile:
    """The tile for a layer of so many rows, output pixels (all images), products of one output and channels.

    Fitted to times of all tiles of 38 layers (float16, images 1, 8 and 64) on an H200.
    """
    shape = (rows, pixels, products)
    # Turns are as long in bytes whatever the type.
    unit = 64 // itemsize
    if channels % unit != 0:  # a first layer, whose products begin anywhere
        tiles = _tiles(rows, 64, pixels, 64)
        return cut(shape, 64, 64, unit, min(-(-PROCESSORS // tiles), -(-products // unit) // 3), 4, 4)
    if itemsize == 2 and rows >= 128 and products >= 2000 and _tiles(rows, 128, pixels, 256) >= 80:
        return cut(shape, 128, 256, 2 * unit, 1, 8, 3)
    if _tiles(rows, 64, pixels, 128) >= 300:
        return cut(shape, 64, 128, 2 * unit, 1, 4, 3)
    for width in (64, 32, 16):
        tiles = _tiles(rows, 64, pixels, width)
        shares = min(-(-PROCESSORS // tiles), -(-products // (2 * unit)) // 14)
        if tiles * max(1, shares) >= 80 and pixels > width // 2:
            break
    long = products >= 1500
    return cut(shape, 64, width, 4 * unit if long else 2 * unit, shares, 4, 3 if long else 4)


def _tiles(rows: int, tile_rows: int, pixels: int, tile_pixels: int) -> int:
    return -(-rows // tile_rows) * -(-pixels // tile_pixels)
