"""How `sparse_conv2d` cuts a layer into programs: the cheapest tile by a count of instructions.

The counts are those of the compiled loop (sm_90; `tests/kernels/test_compile.py` holds the compiler to
them). An H100 or H200 is assumed: others have fewer processors of nearly the same make.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

from finepruning.kernels.common import PROCESSORS
from torch import Tensor

# Warp instructions that a processor issues in a clock, and bytes that its first-level cache delivers.
ISSUE = 4
L1_BYTES = 128
LANES = 32
# Instructions of a thread for one weight, whatever the tile: loop, column, value, decoding of the column.
WEIGHT_INSTRUCTIONS = 24
# For each run of outputs: its address and its load; then a multiply-add for each output, and for 16-bit
# maps a conversion.
RUN_INSTRUCTIONS = 2
# Before and after the loop, for each warp and for each of its outputs.
WARP_INSTRUCTIONS = 150
OUTPUT_INSTRUCTIONS = 12
# Clocks from one turn of the loop to the next when nothing else runs: a load from L1, the decoding, the sum.
TURN_CLOCKS = 110
# Clocks of a program beside its loop: its first loads come from the L2 cache one after the other.
PROGRAM_CLOCKS = 1500
REGISTERS = 65536
# Found by timing all tiles of 12 layers of AlexNet, VGG-16 and ResNet-50 (float16, batch 1 and 8, density .1
# and .05) on an H200 with Triton 3.6, 2026-11-26: several rows a program, more sums a thread than these and
# several weights a warp are 1.5 to 6 times slower than counted; with this rule the tile picked takes 1.13
# times the best one's time (geometric mean; worst 1.9), on the very data that it was chosen on.
MAX_SUMS = 8
MAX_RUNS = 4
MAX_RUNS_SPLIT = 2
# What several warps for one row cost beyond the count.
SPLIT_COST = 1.8
LEAST_CLOCKS = 5000


@dataclass(frozen=True)
class Tile:
    """The work of one program.

    Attributes:
        runs: runs of outputs; run: outputs of one, read at neighbouring addresses by the lanes of a warp.
        rows: output channels. split: weights of a row read at a time, by warps and registers.
        warps: of the program.
    """

    runs: int
    run: int
    rows: int
    split: int
    warps: int


def run_length(x: Tensor) -> int:
    """Outputs of one run: 32 lanes, each with as many neighbouring images as 16 bytes hold."""
    batch = x.shape[0]
    if x.stride(0) != 1 or any(s % batch for s in x.stride()[1:]):
        return LANES
    return LANES * min(batch & -batch, 16 // x.dtype.itemsize)


def instructions(tile: Tile, itemsize: int) -> float:
    """Instructions of a thread for one multiply-add in the loop."""
    outputs = tile.run // LANES
    per_run = RUN_INSTRUCTIONS + outputs * (2 if itemsize == 2 else 1)
    return (WEIGHT_INSTRUCTIONS + tile.runs * per_run) / (tile.runs * outputs)


def clocks(tile: Tile, rows: int, stored: int, outputs: int, itemsize: int) -> float:
    """Modelled clocks of the whole layer: the largest of issue, first-level cache and latency.

    Args:
        rows: of the weight; stored: its entries; outputs: of a row, images included.
    """
    blocks = -(-rows // tile.rows)
    tiles = -(-outputs // (tile.runs * tile.run))
    programs = blocks * tiles
    width = stored / max(rows, 1)
    threads_share = tile.split * tile.rows // tile.warps  # weights that one warp reads in a turn
    turns = -(-width // tile.split)
    sums = tile.runs * (tile.run // LANES)
    loop = turns * threads_share * sums * instructions(tile, itemsize)
    finish = WARP_INSTRUCTIONS + OUTPUT_INSTRUCTIONS * sums * (2 if tile.split > 1 else 1)
    issue = programs * tile.warps * (loop + finish) / ISSUE
    cache = programs * tile.warps * turns * threads_share * tile.runs
    cache *= max(1.0, tile.run * itemsize / L1_BYTES)
    busy = min(programs, PROCESSORS)
    # A processor holds 32 programs, and as many warps as their registers leave room for.
    registers = 40 + 1.7 * sums * threads_share
    warps = min(64, int(REGISTERS / (LANES * registers)))
    resident = PROCESSORS * max(1, min(32, warps // tile.warps))
    waves = max(1.0, programs / resident)
    alone = waves * (PROGRAM_CLOCKS + turns * TURN_CLOCKS)
    return max(issue / busy, cache / busy, alone)


@functools.cache
def tile_shape(rows: int, stored: int, outputs: int, run: int, itemsize: int) -> Tile:
    """The tile of fewest clocks for a layer; arguments as of `clocks`, ``run`` of `run_length`."""
    candidates = [
        Tile(runs, run, 1, warps, warps)
        for runs, warps in itertools.product((1, 2, 4), (1, 4, 8))
        if runs == 1
        or (runs * (run // LANES) <= MAX_SUMS and runs <= (MAX_RUNS if warps == 1 else MAX_RUNS_SPLIT))
    ]

    def cost(tile: Tile) -> float:
        counted = max(clocks(tile, rows, stored, outputs, itemsize), LEAST_CLOCKS)
        return counted * (SPLIT_COST if tile.warps > 1 else 1)

    return min(candidates, key=cost)
