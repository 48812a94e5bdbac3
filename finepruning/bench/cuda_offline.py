"""Compiling for a GPU without touching one: what a plan launches is compiled into Triton's cache, not run.

Triton is given a driver that names the target and nothing else. Argument types, alignments and constants are
those of the real launches, so that a process that has the GPU finds its kernels in the cache.

    python -m finepruning.bench.cuda_offline alexnet 1 float16 90 0.1 0.05
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from finepruning.bench.cuda_outline import Outline
from finepruning.engine import cuda_measure
from finepruning.engine.cuda_choice import Choice, layers
from finepruning.engine.cuda_program import Program, lay_out
from finepruning.engine.plan import Plan

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class OfflineDriver:
    """What the compiler asks of a driver."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def switch_on(capability: int, seen: Callable[[Any, Any, tuple[int, ...]], None]) -> None:
    """From here on, for the whole process, launches compile for ``capability`` (90: H100, H200) and end.

    Args:
        seen: called with the function, the compiled kernel and the grid of every launch.
    """
    driver.set_active(OfflineDriver(capability))
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        seen(self.fn, kernel, grid)
        return kernel

    JITFunction.run = compile_only


def compile_plan(plan: Plan) -> None:
    """Compile what ``plan`` launches with every layer sparse, as a whole and layer by layer.

    In 16 bits, also each convolution by itself, expanded and multiplied by `dense_conv2d`.
    """
    cpu = torch.device("cpu")
    candidates = [layer for layer in layers(plan) if layer.direct]
    steps = {step.name: step for step in plan.steps}
    order: Literal["contiguous", "channels_last"]
    order = "channels_last" if plan.values[plan.input].dtype.itemsize == 2 else "contiguous"
    sparse = {layer.name: Choice("sparse", {}) for layer in candidates}
    parts = [(plan, sparse)]
    for layer in candidates:
        parts.append((cuda_measure.alone(plan, steps[layer.name], "sparse", cpu), sparse))
        if layer.fusible:
            expanded = {layer.name: Choice("expand", {}, fused=True)}
            parts.append((cuda_measure.alone(plan, steps[layer.name], "expand", cpu), expanded))
    kept = []  # packed weights are shared by what is alive
    for part, choices in parts:
        program = Program(part, choices, lay_out(part, choices, order), cpu)
        with torch.no_grad():
            program.run()
        kept.append(program.packed)


def main(arguments: list[str]) -> int:
    """NETWORK BATCH DTYPE CAPABILITY DENSITY...: prints how many launches were compiled or found."""
    name, batch, dtype, capability, *densities = arguments
    count = 0

    def seen(*_: Any) -> None:
        nonlocal count
        count += 1

    switch_on(int(capability), seen)
    outline = Outline(name)
    for density in densities:
        compile_plan(outline.plan(float(density), int(batch), DTYPES[dtype]))
    print(count)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
