"""Large batches on the CPU in slices of 16 images, where that keeps maps in the last cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from finepruning.engine.cpu import CpuExecutor
from finepruning.engine.cpu_schedule import slices_pay
from finepruning.engine.cpu_tape import LANES
from finepruning.engine.cuda_batch import pads
from finepruning.engine.plan import Plan, StepReport


def cpu_executor(plan: Plan, replan: Callable[[int], Plan] | None = None) -> CpuExecutor | SlicedExecutor:
    """The executor for a plan; ``replan`` gives the same plan for another batch size."""
    if replan is not None and plan.batch > LANES and pads(plan) and slices_pay(plan, replan(LANES)):
        return SlicedExecutor(plan, replan)
    return CpuExecutor(plan, replan)


class SlicedExecutor:
    """Runs a plan 16 images at a time, and then what is left; see `finepruning.engine.plan.Executor`."""

    def __init__(self, plan: Plan, replan: Callable[[int], Plan]) -> None:
        rest = plan.batch % LANES
        self._slice = CpuExecutor(replan(LANES), replan)
        self._rest = CpuExecutor(replan(rest), replan) if rest else None
        self._input, self._output = plan.values[plan.input], plan.values[plan.output]
        self._shapes = {step.name: plan.values[step.output].shape for step in plan.steps}

    def report(self) -> list[StepReport]:
        """One row a step of the plan, in order, with the kernels of a slice of 16 images."""
        return [replace(row, shape=self._shapes[row.name]) for row in self._slice.report()]

    @property
    def arena_bytes(self) -> int:
        """Bytes of activations and scratch that one call in flight holds with the current thread count."""
        return self._slice.arena_bytes + (self._rest.arena_bytes if self._rest is not None else 0)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the plan on ``x``: shape and dtype of the plan's input, any strides.

        Raises:
            InputError: another shape, dtype or device.
        """
        CpuExecutor.check(x, self._input)
        result = torch.empty(self._output.shape)
        for some, into in zip(torch.split(x, LANES), torch.split(result, LANES), strict=True):
            executor = self._slice if some.shape[0] == LANES or self._rest is None else self._rest
            into.copy_(executor(some))
        return result
