"""How `dense_conv2d` cuts a layer into programs."""

from __future__ import annotations

import functools
from dataclasses import dataclass

PROCESSORS = 132  # of an H100 or H200
# Rows of a tile: 128, with as many pixels, spill with Triton 3.8.
ROWS = 64


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
def dense_tile(rows: int, pixels: int, products: int, itemsize: int) -> DenseTile:
    """The tile for a layer of so many rows, output pixels (all images) and products of one output.

    Sums are shared until every processor has a program, each with three turns or more: an estimate.
    """
    depth = 64 if itemsize == 2 else 32
    block_pixels = 64 if pixels > 64 else 32 if pixels > 16 else 16
    tiles = -(-rows // ROWS) * -(-pixels // block_pixels)
    turns = -(-products // depth)
    shares = max(1, min(PROCESSORS // tiles, turns // 3, 16))
    return cut((rows, pixels, products), ROWS, block_pixels, depth, shares, 4, 4)
