"""Time every tile of the CPU's convolutions in three networks, and what the cost model chooses.

    python benchmarks/cpu_tiles.py [--networks alexnet,resnet50] [--out FILE]

Writes results/cpu_tiles.json; 2 cores take a quarter of an hour. Each candidate is a register tile and a size
of its input blocks, run on the layout, weights and threads that the layer has in its network (no residual).
Before each run another step writes its input anew: with hot caches small tiles look better than they are in
a network. A candidate whose output differs from the choice's is an error. Tests hold the choice to the times.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich.console import Console

from finepruning import _core, models
from finepruning.bench import machine
from finepruning.bench.networks import prune_uniform
from finepruning.engine import cpu_lowering
from finepruning.engine.capture import capture
from finepruning.engine.cpu_tape import Bands, Buffer, Tape, build, lane_blocks
from finepruning.engine.cpu_weights import csr_arrays, with_sparse_weights
from finepruning.engine.fuse import fuse
from finepruning.sparse.csr import CSR

RESULTS = Path(__file__).parent / "results" / "cpu_tiles.json"
NETWORKS = "alexnet,vgg16,resnet50"
DENSITIES, BATCHES = (0.10, 0.05), (16, 1)
# As the choice tries them.
BLOCK_BYTES = tuple(36 * 1024 * n for n in (1, 2, 5, 14))
ROUNDS = 5
# Candidates that take longer than so many times the best are not run again.
HOPELESS = 1.5
# The fastest of many noisy medians is too good to be true: so many candidates are timed anew, more often.
FINALISTS, FINAL_ROUNDS = 8, 11
MAX_ERROR = 1e-4  # of the largest output


@dataclass(frozen=True)
class Case:
    """A convolution as a network runs it; ``arguments`` are those of `_core.PackedConv`."""

    network: str
    layer: str
    density: float
    batch: int
    weight: CSR
    arguments: dict[str, Any]

    @property
    def lanes(self) -> bool:
        return bool(self.arguments["mapping"] == "lanes")

    @property
    def images(self) -> int:
        return lane_blocks(self.batch) if self.lanes else self.batch

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the output before it is pooled."""
        names = ("size", "kernel", "stride", "padding", "dilation")
        axes = zip(*(self.arguments[name] for name in names), strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
        return height, width

    def bands(self, channels: int, size: tuple[int, int], *, banded: bool) -> Bands:
        """Of a map; one of 0 rows, which stands for all, where it lies whole."""
        if banded:
            return Bands.of(channels, size, self.arguments["threads"])
        return Bands(channels, size, 0, 1, math.prod(size) * (_core.lanes() if self.lanes else 1))

    def pack(self, mapping: str, tile: tuple[int, int], block_units: int) -> _core.PackedConv:
        forced = {"mapping": mapping, "tile": tile, "block_units": block_units}
        if mapping == "flat":
            forced["pooled"] = False
        return _core.PackedConv(**csr_arrays(self.weight), **{**self.arguments, **forced})


@dataclass
class Candidate:
    """One way to run a case: steps [first, last) of its program."""

    mapping: str
    packed: _core.PackedConv
    first: int = 0
    last: int = 0

    @property
    def key(self) -> tuple[str, int, int, int]:
        return (self.mapping, *self.packed.tile, self.packed.blocks)


def cases(network: str, density: float, batch: int, threads: int) -> Iterator[Case]:
    """The different sparse convolutions of a network."""
    made = models.create(network, 1000, "none", 0)
    prune_uniform(made.module, density)
    graph, tensors = capture(made.module.eval(), (3, made.image_size, made.image_size))
    plan = with_sparse_weights(fuse(graph, tensors, batch, torch.float32))
    found: list[tuple[CSR, dict[str, Any]]] = []

    def packed_conv(weight: CSR, **arguments: Any) -> _core.PackedConv:
        if arguments["mapping"] != "matrix":
            found.append((weight, arguments))
        return pack(weight, **arguments)

    pack = cpu_lowering.packed_conv
    with mock.patch.object(cpu_lowering, "packed_conv", packed_conv):
        cpu_lowering.Lowering(plan, threads=threads)
    names = {id(step.weight): step.name for step in plan.steps}
    seen = set()
    for weight, arguments in found:
        key = (weight.nnz, *sorted(arguments.items()))
        if key not in seen:
            seen.add(key)
            yield Case(network, names[id(weight)], density, batch, weight, arguments)


def candidates(case: Case) -> list[Candidate]:
    """The model's choice first; then every tile with every size of its blocks."""
    mine = case.pack(case.arguments["mapping"], (0, 0), 0)
    mapping = mine.kernel.split("_")[1]
    found = [Candidate(mapping, mine)]
    seen = {found[0].key}
    tiles = {kernel["tile"] for kernel in _core.kernels() if kernel["name"] == "sparse_tile"}
    for mapping, tile in sorted((m, t) for m in mappings(case) for t in rectangles(m, tiles)):
        for block_units in sizes_of_blocks(case, mapping, tile):
            try:
                candidate = Candidate(mapping, case.pack(mapping, tile, block_units))
            except ValueError:  # more than a block may hold, or a tile that cannot be pooled
                continue
            if candidate.key not in seen:
                seen.add(candidate.key)
                found.append(candidate)
    return found


def mappings(case: Case) -> list[str]:
    return ["lanes"] if case.lanes else ["rows", "flat"]


def rectangles(mapping: str, tiles: set[tuple[int, int] | None]) -> set[tuple[int, int]]:
    """Shapes that the kernels' tiles serve: under "rows" a run of vectors serves any rectangle."""
    shapes = {tile for tile in tiles if tile is not None}
    if mapping == "lanes":
        return shapes
    runs = {columns for rows, columns in shapes if rows == 1}
    if mapping == "flat":
        return {(1, run) for run in runs}
    return {(run // width, width) for run in runs for width in range(1, run + 1) if run % width == 0}


def sizes_of_blocks(case: Case, mapping: str, tile: tuple[int, int]) -> list[int]:
    """Units of input that fill a block of each size."""
    rows, columns = tile
    kernel, stride, dilation = (case.arguments[name] for name in ("kernel", "stride", "dilation"))
    reach = [d * (k - 1) // s for k, s, d in zip(kernel, stride, dilation, strict=True)]
    unit_rows = rows + (reach[0] if mapping != "flat" else 0)
    unit_columns = columns + (reach[1] if mapping == "lanes" else 0)
    lanes = _core.lanes() if mapping == "lanes" else _core.map_lanes()
    unit_bytes = unit_rows * unit_columns * lanes * 4
    return sorted({max(1, size // unit_bytes) for size in BLOCK_BYTES})


class Rig:
    """A program whose first step writes the input; then come the steps of every candidate."""

    def __init__(self, case: Case, found: list[Candidate], threads: int) -> None:
        self.case, self.candidates = case, found
        arguments = case.arguments
        in_bands, banded = arguments.get("source_band", 0) > 0, arguments.get("banded", False)
        whole = case.bands(arguments["channels"], arguments["size"], banded=False)
        source = case.bands(arguments["channels"], arguments["size"], banded=in_bands)
        height, width = case.out
        result = case.bands(arguments["outputs"], (height, width), banded=banded)
        halves = case.bands(arguments["outputs"], (height // 2, width // 2), banded=banded)
        pooled = bool(arguments.get("pooled"))
        floats = case.images * whole.floats
        self.input = np.random.default_rng(0).standard_normal(floats).astype(np.float32)
        given = Buffer(self.input.size, "input")
        written, unpooled, self.target = (
            Buffer(case.images * bands.floats, bands=bands.count)
            for bands in (source, result, halves if pooled else result)
        )
        tape = Tape(1 if case.lanes else arguments["threads"])
        tape.native("write", self._write(whole, source), given, written)
        for candidate in found:
            candidate.first = len(tape.operations)
            convolved = unpooled if pooled and not candidate.packed.pooled else self.target
            tape.native("conv", self._conv(candidate.packed), written, convolved)
            if convolved is not self.target:
                tape.native("pool", self._pool(result, halves, (2, 2)), convolved, self.target)
            candidate.last = len(tape.operations)
        self._built = build(tape)
        self._context = self._built.program.acquire(threads)
        self._valid = halves if pooled else result

    def _conv(self, packed: _core.PackedConv) -> Any:
        images = self.case.images
        return lambda p, ids: p.conv(ids[0], ids[1], packed, activation="relu", images=images)

    def _write(self, whole: Bands, source: Bands) -> Any:
        if self.case.lanes:  # pools take these from the arena alone
            return lambda p, ids: p.elementwise(ids[0], -1, ids[1], n=self.input.size)
        return self._pool(whole, source, (1, 1))

    def _pool(self, source: Bands, target: Bands, window: tuple[int, int]) -> Any:
        case = self.case
        return lambda p, ids: p.pool(
            ids[0],
            ids[1],
            size=source.size,
            out=target.size,
            kernel=window,
            stride=window,
            padding=(0, 0),
            images=case.images,
            channels=source.channels,
            bands=(source.rows, target.rows),
            lanes=case.lanes,
            maximum=True,
        )

    def seconds(self, candidate: Candidate) -> float:
        """Of one run, after its input has been written."""
        self._run(0, 1)
        start = time.perf_counter()
        self._run(candidate.first, candidate.last)
        return time.perf_counter() - start

    def _run(self, first: int, last: int) -> None:
        self._built.program.run(self._context, first, last, self.input, np.empty(0, np.float32))

    def output(self, candidate: Candidate) -> Any:
        """Its result, of what would be NaN if it left it out; without what fills up planes of bands."""
        view = self._built.program.view(self._context, self._built.ids[self.target])
        view[...] = np.nan
        self.seconds(candidate)
        bands = self._valid
        planes = view.reshape(bands.count, -1, bands.pitch)
        if bands.rows == 0:
            return planes.copy()
        height, width = bands.size
        rows = [min(bands.rows, height - at) for at in range(0, height, bands.rows)]
        return np.concatenate([planes[i, :, : n * width] for i, n in enumerate(rows)], axis=1)


def timed(case: Case, threads: int) -> dict[str, Any]:
    """A row of the results: candidates in milliseconds, the model's choice first, then other finalists."""
    rig = Rig(case, candidates(case), threads)
    expected = rig.output(rig.candidates[0])
    for candidate in rig.candidates[1:]:
        error = np.abs(rig.output(candidate) - expected).max()
        if not error <= MAX_ERROR * np.abs(expected).max():
            raise RuntimeError(f"{case.network} {case.layer}: {candidate.key} is off by {error:.2g}")
    shuffle = random.Random(0)
    times: dict[int, list[float]] = {index: [] for index in range(len(rig.candidates))}

    def run(indices: list[int]) -> None:
        for index in shuffle.sample(indices, len(indices)):
            times[index].append(rig.seconds(rig.candidates[index]))

    def median(index: int) -> float:
        return statistics.median(times[index])

    run(list(times))
    for _ in range(1, ROUNDS):
        least = min(map(median, times))
        run([index for index in times if median(index) < HOPELESS * least])
    finalists = list(dict.fromkeys([0, *sorted(times, key=median)[:FINALISTS]]))
    times.update({index: [] for index in finalists})
    for _ in range(FINAL_ROUNDS):
        run(finalists)
    order = list(dict.fromkeys([*finalists, *times]))
    return {
        "network": case.network,
        "layer": case.layer,
        "density": case.density,
        "batch": case.batch,
        "nonzeros": case.weight.nnz,
        "arguments": case.arguments,
        "finalists": len(finalists),
        "candidates": [
            [*found.key, int(found.packed.cost), float(f"{1e3 * median(index):.4g}")]
            for index, found in ((index, rig.candidates[index]) for index in order)
        ],
    }


def behind(row: dict[str, Any]) -> float:
    """Time of the model's choice over that of the best candidate."""
    times = [candidate[-1] for candidate in row["candidates"][: row["finalists"]]]
    return float(times[0] / min(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--networks", default=NETWORKS, help="torchvision classifiers, by commas")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    console = Console(highlight=False)
    about = machine.describe(torch.device("cpu"), arguments.threads)
    columns = ["mapping", "rows", "columns", "blocks", "modelled cycles", "ms"]
    rows: list[dict[str, Any]] = []
    for network in arguments.networks.split(","):
        for density in DENSITIES:
            for batch in BATCHES:
                for case in cases(network, density, batch, arguments.threads):
                    row = timed(case, arguments.threads)
                    rows.append(row)
                    best = min(row["candidates"][: row["finalists"]], key=lambda candidate: candidate[-1])
                    console.print(
                        f"{network} {case.layer}, density {density:.2f}, batch {batch}: chosen "
                        f"{row['candidates'][0]}, best of {len(row['candidates'])} {best}",
                        soft_wrap=True,
                    )
                store(arguments.out, {**about, "columns": columns}, rows)
    for lanes, name in ((True, "images side by side"), (False, "images one by one")):
        ratios = [behind(row) for row in rows if (row["arguments"]["mapping"] == "lanes") == lanes]
        if ratios:
            console.print(
                f"{name}: {len(ratios)} cases, the choice {statistics.geometric_mean(ratios):.3f} times as "
                f"long as the best in the geometric mean, {max(ratios):.2f} at most"
            )
    console.print(f"stored in {arguments.out}")


def store(path: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """One line a case: the file is long."""
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    path.write_text(f'{json.dumps(about, indent=1)[:-2]},\n "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
