"""Measuring pruned models against the dense runtimes users have."""

from finepruning.bench.runner import BenchOptions, OutputMismatchError, bench

__all__ = ["BenchOptions", "OutputMismatchError", "bench"]
