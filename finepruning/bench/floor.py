"""The least time the machine's limits allow a pruned network, and how near each layer comes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from finepruning.engine.plan import StepReport

INDEX_BYTES = 2  # a column index as the file stores it; the kernels' offsets are as wide


@dataclass(frozen=True)
class MachineLimits:
    """Measured limits of the threads in use, in the same run as the times they are compared with.

    Attributes:
        macs_per_second: multiply-accumulates in float32 with everything in registers.
        bytes_per_second: sequential reads from memory.
    """

    macs_per_second: float
    bytes_per_second: float


def measure_limits(threads: int) -> MachineLimits:
    """Measure the limits of ``threads`` CPU threads now; takes a fraction of a second."""
    from finepruning import _core

    return MachineLimits(1e9 * _core.fma_peak(threads), 1e9 * _core.read_bandwidth(threads))


def nonzero_macs(report: StepReport) -> int:
    """Multiply-accumulates of the stored weights: each meets every position of its output channel."""
    if report.nnz is None:
        return 0
    if report.op == "conv2d":
        return report.nnz * report.shape[0] * math.prod(report.shape[2:])
    return report.nnz * math.prod(report.shape[:-1])


def floor_ms(report: StepReport, limits: MachineLimits, value_bytes: int = 4) -> float:
    """Milliseconds below which the layer cannot run: its arithmetic or its weights, whichever takes longer.

    Args:
        report: the step; steps without weights have no floor.
        limits: of the machine and threads that run it.
        value_bytes: bytes of one stored weight (4 for float32, 2 for the 16-bit types).
    """
    if report.nnz is None:
        return 0.0
    compute = nonzero_macs(report) / limits.macs_per_second
    read = report.nnz * (value_bytes + INDEX_BYTES) / limits.bytes_per_second
    return 1e3 * max(compute, read)


def network_floor_ms(reports: Sequence[StepReport], limits: MachineLimits, value_bytes: int = 4) -> float:
    """Sum of the floors of all steps."""
    return sum(floor_ms(report, limits, value_bytes) for report in reports)
