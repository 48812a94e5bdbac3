"""Batches on the CPU in slices, whose maps the last cache keeps or which fill vectors, and the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from finepruning import _core
from finepruning.engine.cpu import CpuExecutor
from finepruning.engine.cpu_schedule import in_lanes, rest_pays, slices_pay
from finepruning.engine.plan import Plan, StepReport, keeps_images_apart


def cpu_executor(plan: Plan, replan: Callable[[int], Plan] | None = None) -> CpuExecutor | SlicedExecutor:
    """The executor for a plan; ``replan`` gives the same plan for another batch size."""
    if replan is None or not keeps_images_apart(plan):
        return CpuExecutor(plan, replan)
    images = _images_of_a_slice(plan, replan)
    return SlicedExecutor(plan, replan, images) if images < plan.batch else CpuExecutor(plan, replan)


def _images_of_a_slice(plan: Plan, replan: Callable[[int], Plan]) -> int:
    batch, lanes = plan.batch, _core.lanes()
    most = max(lanes, _core.map_lanes())
    images = most if batch > most else torch.get_num_threads()
    if images < batch != most and slices_pay(plan, replan(images)):
        return images
    left = batch % lanes
    if batch > lanes and left and not in_lanes(left) and rest_pays(plan, left, torch.get_num_threads()):
        return batch - left
    return batch


class SlicedExecutor:
    """Runs a plan so many images at a time, then what is left; see `finepruning.engine.plan.Executor`."""

    def __init__(self, plan: Plan, replan: Callable[[int], Plan], images: int) -> None:
        rest = plan.batch % images
        self._images = images
        self._slice = CpuExecutor(replan(images), replan)
        self._rest = cpu_executor(replan(rest), replan) if rest else None
        self._input, self._output = plan.values[plan.input], plan.values[plan.output]
        self._shapes = {step.name: plan.values[step.output].shape for step in plan.steps}

    def report(self) -> list[StepReport]:
        """One row a step of the plan, in order, with the kernels of one slice."""
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
        result = torch.empty(self._output.shape)
        for executor, some, into in zip(*self._pieces(x), torch.split(result, self._images), strict=True):
            into.copy_(executor(some))
        return result

    def profile(self, x: Tensor) -> list[tuple[str, float]]:
        """Seconds of every operation in execution order, as (step name, seconds), slice after slice."""
        return [
            row for executor, some in zip(*self._pieces(x), strict=True) for row in executor.profile(some)
        ]

    def _pieces(self, x: Tensor) -> tuple[list[CpuExecutor | SlicedExecutor], list[Tensor]]:
        CpuExecutor.check(x, self._input)
        pieces = list(torch.split(x, self._images))
        executors: list[CpuExecutor | SlicedExecutor] = [self._slice] * len(pieces)
        if self._rest is not None:
            executors[-1] = self._rest
        return executors, pieces
