"""Every layer timed by itself: which kernel, how long, how near the floor, and the dense time beside it."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

import torch

from finepruning.bench.floor import MachineLimits, floor_ms
from finepruning.bench.twin import PlanModule
from finepruning.engine.cpu_slices import cpu_executor
from finepruning.engine.fuse import fuse
from finepruning.engine.plan import Plan
from finepruning.sparse.csr import CSR
from finepruning.sparse.storage import StoredModel

TURNS = 15


def layer_rows(
    stored: StoredModel, batch: int, limits: MachineLimits | None, turns: int = TURNS
) -> list[dict[str, Any]]:
    """Median times of every step of the CPU plan for ``batch``, ours and PyTorch's dense ones in turns.

    The plan is the one that the model runs. Steps are timed alone: one that runs in a loop over chunks of
    images, over all of them.

    Args:
        stored: the model. batch: images. limits: the machine's, for the floor; None leaves it out.
        turns: how often each side runs.

    Returns:
        Rows with ``batch, name, op, kernel, shape, nnz, size, density, ms, floor_ms, dense_ms``.
    """

    def planned(images: int) -> Plan:
        return fuse(stored.graph, stored.tensors, images)

    plan = planned(batch)
    value_bytes = {
        step.name: step.weight.values.itemsize for step in plan.steps if isinstance(step.weight, CSR)
    }
    ours, dense = cpu_executor(plan, planned), PlanModule(plan).eval().float()
    x = torch.rand(batch, *stored.graph.input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sides: tuple[dict[str, list[float]], ...] = (defaultdict(list), defaultdict(list))
    with torch.inference_mode():
        for turn in range(turns + 1):
            for profile, times in zip((ours.profile, dense.profile), sides, strict=True):
                profile(x)
                together: dict[str, float] = defaultdict(float)  # a step may take several operations
                for name, seconds in profile(x):
                    together[name] += seconds
                if turn > 0:  # the first turn warms up
                    for name, seconds in together.items():
                        times[name].append(1e3 * seconds)
    rows = []
    for report in ours.report():
        rows.append(
            {
                "batch": batch,
                "name": report.name,
                "op": report.op,
                "kernel": report.kernel,
                "shape": list(report.shape),
                "nnz": report.nnz,
                "size": report.size,
                "density": report.nnz / report.size if report.nnz is not None and report.size else None,
                "ms": _median(sides[0].get(report.name)),
                "floor_ms": floor_ms(report, limits, value_bytes.get(report.name, 4))
                if limits is not None
                else None,
                "dense_ms": _median(sides[1].get(report.name)),
            }
        )
    return rows


def _median(times: list[float] | None) -> float | None:
    return statistics.median(times) if times else None
