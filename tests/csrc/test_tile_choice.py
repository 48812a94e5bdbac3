"""The cost model's choice of tiles against recorded times of all of them."""

import json
import math
from pathlib import Path
from statistics import geometric_mean

import pytest
import torch

from finepruning import _core
from finepruning.engine.cpu_weights import csr_arrays
from finepruning.sparse.csr import CSR

RESULTS = sorted((Path(__file__).parents[2] / "benchmarks/results").glob("cpu_tiles*.json"))
BUILDS = {"avx512-split": "avx512vl"}  # names that stand for two builds of the kernels


def choice(case):
    """Mapping, tile and blocks that a random weight of the case's size gets."""
    arguments = case["arguments"]
    shape = (arguments["outputs"], arguments["channels"] // arguments["groups"], *arguments["kernel"])
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < case["nonzeros"] / math.prod(shape)
    packed = _core.PackedConv(**csr_arrays(CSR.from_dense(kept.float())), **arguments)
    return packed.kernel.split("_")[1], *packed.tile, packed.blocks


@pytest.mark.parametrize("mapping", ["lanes", "planar"])
@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_tiles_are_near_the_best_that_was_measured(path, mapping, monkeypatch):
    """benchmarks/cpu_tiles.py makes the times."""
    recorded = json.loads(path.read_text())
    isa = recorded["machine"]["isa"]
    if BUILDS.get(isa, isa) not in {row["isa"] for row in _core.kernels()}:
        pytest.skip(f"the times are those of {isa}, which this machine does not run")
    monkeypatch.setenv("FINEPRUNING_ISA", isa)
    cases = [row for row in recorded["rows"] if row["arguments"]["mapping"] == mapping]
    assert len(cases) > 40
    behind = []
    for case in cases:
        *chosen, blocks = choice(case)
        # Another pattern of as many weights may fill its blocks a little differently.
        alike = [
            (abs(math.log(candidate[3] / blocks)), candidate[-1])
            for candidate in case["candidates"]
            if candidate[:3] == chosen
        ]
        best = min(candidate[-1] for candidate in case["candidates"][: case["finalists"]])
        behind.append(min(alike)[1] / best)
    assert geometric_mean(behind) <= 1.08
    assert max(behind) <= 1.7
