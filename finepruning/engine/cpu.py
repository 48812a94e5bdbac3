"""Runs a plan on the CPU with the native kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from finepruning.engine.cpu_choice import dense_layers
from finepruning.engine.cpu_lowering import Lowering
from finepruning.engine.cpu_runner import Runner
from finepruning.engine.cpu_schedule import Schedule, schedule
from finepruning.engine.cpu_weights import with_dense_weights, with_sparse_weights
from finepruning.engine.plan import Plan, StepReport, Value
from finepruning.errors import InputError


class CpuExecutor:
    """Executes one plan; see `finepruning.engine.plan.Executor`.

    Runs of native steps go to C++ in one call each, without the GIL; what has no kernel runs through
    PyTorch between them. Every call in flight holds an arena of its own, kept for the next call.
    """

    def __init__(self, plan: Plan, replan: Callable[[int], Plan] | None = None) -> None:
        """``replan`` gives the same plan for another batch size; without it, the batch runs step by step."""
        threads = torch.get_num_threads()
        plan = with_sparse_weights(plan)
        dense = dense_layers(plan, threads, loops=replan is not None)
        plan = with_dense_weights(plan, dense)
        chosen = schedule(plan, threads) if replan is not None else Schedule()
        chunk = None
        if replan is not None and chosen.steps:
            chunk = with_dense_weights(with_sparse_weights(replan(chosen.images)), dense)
        lowering = Lowering(plan, chosen.steps, chunk, why_dense=dense, threads=threads)
        self._reports = lowering.reports
        self._runner = Runner(plan, lowering)
        self._input = plan.values[plan.input]

    def report(self) -> list[StepReport]:
        """One row a step of the plan, in order."""
        return list(self._reports)

    @property
    def arena_bytes(self) -> int:
        """Bytes of activations and scratch that one call in flight holds with the current thread count."""
        return self._runner.arena_bytes

    def __call__(self, x: Tensor) -> Tensor:
        """Run the plan on ``x``: shape and dtype of the plan's input, any strides.

        Raises:
            InputError: another shape, dtype or device.
        """
        self.check(x, self._input)
        return self._runner.run(x)

    def profile(self, x: Tensor) -> list[tuple[str, float]]:
        """Seconds of every operation in execution order, as (step name, seconds); steps are timed alone."""
        self.check(x, self._input)
        times: list[tuple[str, float]] = []
        self._runner.run(x, times)
        return times

    @staticmethod
    def check(x: Tensor, value: Value) -> None:
        """Raise InputError unless ``x`` is what the plan's input ``value`` says."""
        if tuple(x.shape) != value.shape or x.dtype != value.dtype or x.device.type != "cpu":
            raise InputError(
                f"this plan takes {value.dtype} of shape {tuple(value.shape)} on the cpu; got "
                f"{x.dtype} of shape {tuple(x.shape)} on {x.device}: make a plan for that shape"
            )
