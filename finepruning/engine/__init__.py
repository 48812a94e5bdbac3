"""Runs pruned networks: capture, plan, executors and `SparseModel`."""

from finepruning.engine.model import SparseModel

__all__ = ["SparseModel"]
