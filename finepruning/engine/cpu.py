"""Runs a plan on the CPU with the native kernels."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finepruning import _core
from finepruning.engine.cpu_lowering import Lowering
from finepruning.engine.cpu_schedule import Schedule, schedule
from finepruning.engine.cpu_tape import Call, build, detached
from finepruning.engine.cpu_weights import with_sparse_weights
from finepruning.engine.plan import Plan, StepReport
from finepruning.errors import InputError


class CpuExecutor:
    """Executes one plan; see `finepruning.engine.plan.Executor`.

    Runs of native steps go to C++ in one call each, without the GIL; what has no kernel runs through
    PyTorch between them. Every call in flight holds an arena of its own, kept for the next call.
    """

    def __init__(self, plan: Plan, replan: Callable[[int], Plan] | None = None) -> None:
        """``replan`` gives the same plan for another batch size; without it, the batch runs step by step."""
        plan = with_sparse_weights(plan)
        chosen = schedule(plan, torch.get_num_threads()) if replan is not None else Schedule()
        chunk = with_sparse_weights(replan(chosen.images)) if replan is not None and chosen.steps else None
        lowering = Lowering(plan, chosen.steps, chunk)
        self._plan = plan
        self._reports = lowering.reports
        self._built = build(lowering.tape)
        self._input = plan.values[plan.input]
        self._output = plan.values[plan.output]
        self._result = lowering.tape.storage[plan.output]

    def report(self) -> list[StepReport]:
        """One row a step of the plan, in order."""
        return list(self._reports)

    @property
    def arena_bytes(self) -> int:
        """Bytes of activations and scratch that one call in flight holds with the current thread count."""
        return self._built.program.context_bytes(torch.get_num_threads())

    def __call__(self, x: Tensor) -> Tensor:
        """Run the plan on ``x``: shape and dtype of the plan's input, any strides.

        Raises:
            InputError: another shape, dtype or device.
        """
        return self._run(x, None)

    def profile(self, x: Tensor) -> list[tuple[str, float]]:
        """Seconds of every operation in execution order, as (step name, seconds); steps are timed alone."""
        times: list[tuple[str, float]] = []
        self._run(x, times)
        return times

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape) != self._input.shape or x.dtype != self._input.dtype or x.device.type != "cpu":
            raise InputError(
                f"this plan takes {self._input.dtype} of shape {tuple(self._input.shape)} on the cpu; got "
                f"{x.dtype} of shape {tuple(x.shape)} on {x.device}: make a plan for that shape"
            )

    @torch.no_grad()
    def _run(self, x: Tensor, times: list[tuple[str, float]] | None) -> Tensor:
        self._check(x)
        program = self._built.program
        source = x.detach().contiguous()
        result = torch.empty(self._output.shape)
        source_array, result_array = _flat(source), _flat(result)
        tensors: dict[str, Tensor] = {self._plan.input: x}
        context = program.acquire(torch.get_num_threads())
        try:
            for segment in self._built.segments:
                if isinstance(segment, Call):
                    start = time.perf_counter()
                    self._call(segment, context, tensors, source, result)
                    if times is not None:
                        times.append((segment.name, time.perf_counter() - start))
                elif times is None:
                    program.run(context, *segment, source_array, result_array)
                else:
                    for step in range(*segment):
                        start = time.perf_counter()
                        program.run(context, step, step + 1, source_array, result_array)
                        times.append((self._built.names[step], time.perf_counter() - start))
        finally:
            program.release(context)
        if self._result.buffers:
            return result
        assert self._result.tensor is not None
        return tensors[self._result.tensor].reshape(self._output.shape)

    def _call(
        self, call: Call, context: _core.Context, tensors: dict[str, Tensor], source: Tensor, result: Tensor
    ) -> None:
        loaded = {}
        for name, (buffer, shape) in call.load.items():
            if buffer.kind == "arena":
                flat = torch.from_numpy(self._built.program.view(context, self._built.ids[buffer]))
            else:
                flat = (source if buffer.kind == "input" else result).reshape(-1)
            loaded[name] = flat.reshape(shape)
        value = call.run({**tensors, **loaded})
        if call.store is None:
            tensors[call.output] = detached(value, list(loaded.values()))
        elif call.store.kind == "output":
            result.reshape(-1).copy_(value.reshape(-1))
        else:
            target = torch.from_numpy(self._built.program.view(context, self._built.ids[call.store]))
            target.copy_(value.reshape(-1))


def _flat(x: Tensor) -> NDArray[np.float32]:
    """The floats of ``x`` as a flat array; empty for another dtype, which only PyTorch steps read."""
    array: NDArray[np.float32] = (x.view(-1) if x.dtype == torch.float32 else torch.empty(0)).numpy()
    return array
