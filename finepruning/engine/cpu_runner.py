"""Runs what a plan was lowered to: stretches of native steps, and PyTorch's operations between them."""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finepruning import _core
from finepruning.engine.cpu_lowering import Lowering
from finepruning.engine.cpu_tape import Call, build, detached
from finepruning.engine.plan import Plan


class Runner:
    """A lowered plan, ready to run. Safe to call from several threads at once.

    Attributes:
        built: the native program and the order of segments and calls.
    """

    def __init__(self, plan: Plan, lowering: Lowering) -> None:
        self.built = build(lowering.tape)
        self._plan = plan
        self._output = plan.values[plan.output]
        self._result = lowering.tape.storage[plan.output]

    @property
    def arena_bytes(self) -> int:
        """Bytes of activations and scratch that one call in flight holds with the current thread count."""
        return self.built.program.context_bytes(torch.get_num_threads())

    @torch.no_grad()
    def run(self, x: Tensor, times: list[tuple[str, float]] | None = None) -> Tensor:
        """The plan's result for ``x``, which fits it; ``times`` receives the seconds of each step."""
        program = self.built.program
        source = x.detach().contiguous()
        native = bool(self._result.buffers)  # else PyTorch makes the result
        result = torch.empty(self._output.shape if native else 0)
        source_array, result_array = _flat(source), _flat(result)
        tensors: dict[str, Tensor] = {self._plan.input: x}
        context = program.acquire(torch.get_num_threads())
        try:
            for segment in self.built.segments:
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
                        times.append((self.built.names[step], time.perf_counter() - start))
        finally:
            program.release(context)
        if native:
            return result
        assert self._result.tensor is not None
        return tensors[self._result.tensor].reshape(self._output.shape)

    def _call(
        self, call: Call, context: _core.Context, tensors: dict[str, Tensor], source: Tensor, result: Tensor
    ) -> None:
        loaded = {}
        for name, (buffer, shape) in call.load.items():
            if buffer.kind == "arena":
                flat = torch.from_numpy(self.built.program.view(context, self.built.ids[buffer]))
            else:
                flat = (source if buffer.kind == "input" else result).reshape(-1)
            loaded[name] = flat.reshape(shape)
        values = {**tensors, **loaded}
        if call.store is None:
            tensors[call.output] = detached(call.run(values), list(loaded.values()))
            return
        if call.store.kind == "output":
            target = result.reshape(-1)
        else:
            target = torch.from_numpy(self.built.program.view(context, self.built.ids[call.store]))
        if call.fill is not None:
            call.fill(values, target)
        else:
            target.copy_(call.run(values).reshape(-1))


def _flat(x: Tensor) -> NDArray[np.float32]:
    """The floats of ``x`` as a flat array; empty for another dtype, which only PyTorch steps read."""
    array: NDArray[np.float32] = (x.view(-1) if x.dtype == torch.float32 else torch.empty(0)).numpy()
    return array
