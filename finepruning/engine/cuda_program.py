"""A plan laid out in memory and turned into launches: everything of the CUDA executor but the graph.

Nothing here needs a GPU: on the CPU the same steps run under Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from finepruning.engine import cuda_layout, cuda_steps, cuda_weights
from finepruning.engine.cuda_choice import Choice
from finepruning.engine.plan import Plan, Step, StepReport
from finepruning.engine.reference import fused_names
from finepruning.sparse.csr import CSR


@dataclass(frozen=True)
class Layout:
    """Memory of a plan, decided before any is allocated.

    Attributes:
        placed: name -> where and how each value lies. scratch: step -> bytes of its dense weight.
        offsets: bytes from the start of the arena. arena_bytes: its size, without the input.
        weight_bytes: of all weights as they will be stored.
    """

    placed: Mapping[str, cuda_layout.Placement]
    scratch: Mapping[str, int]
    offsets: Mapping[str, int]
    arena_bytes: int
    input_bytes: int
    weight_bytes: int
    dense_order: Literal["contiguous", "channels_last"]


def lay_out(
    plan: Plan, choices: Mapping[str, Choice], dense_order: Literal["contiguous", "channels_last"]
) -> Layout:
    """The memory that ``plan`` needs with these choices."""
    placed = cuda_layout.placements(plan, choices, dense_order)
    scratch = {
        step.name: cuda_steps.scratch_bytes(step, choices.get(step.name), placed[step.output].dtype)
        for step in plan.steps
    }
    offsets, total = cuda_layout.arena(plan, placed, scratch)
    source = placed[plan.input]
    weights = sum(
        _weight_bytes(step, choices.get(step.name), placed[step.output].dtype) for step in plan.steps
    )
    return Layout(placed, scratch, offsets, total, source.numel * source.dtype.itemsize, weights, dense_order)


class Program:
    """A plan as launches over fixed memory.

    Attributes:
        input: the value to fill before `run`. output: the value that it leaves.
    """

    def __init__(
        self, plan: Plan, choices: Mapping[str, Choice], layout: Layout, device: torch.device
    ) -> None:
        placed = layout.placed
        arena = torch.empty(layout.arena_bytes, dtype=torch.uint8, device=device)
        # Zeros once: calls write inside the border only.
        own = torch.zeros(layout.input_bytes, dtype=torch.uint8, device=device)
        memory = {plan.input: own}
        memory |= {name: arena[offset:] for name, offset in layout.offsets.items()}

        def typed(name: str, numel: int, dtype: torch.dtype) -> Tensor:
            return memory[name][: numel * dtype.itemsize].view(dtype)

        values = {
            name: placement.view(typed(placement.source or name, placement.numel, placement.dtype))
            for name, placement in placed.items()
        }
        scratch = {
            step.name: typed(
                f"scratch:{step.name}",
                layout.scratch[step.name] // placed[step.output].dtype.itemsize,
                placed[step.output].dtype,
            )
            for step in plan.steps
            if layout.scratch[step.name]
        }
        dtype = plan.values[plan.input].dtype
        self._constants = {
            name: cuda_weights.dense(tensor, dtype if tensor.is_floating_point() else tensor.dtype, device)
            for name, tensor in plan.tensors.items()
        }
        tensors = {name: constant.tensor for name, constant in self._constants.items()}
        context = cuda_steps.Context(values, placed, scratch, tensors, device, layout.dense_order)
        self._steps = [cuda_steps.build(step, choices.get(step.name), context) for step in plan.steps]
        self._plan, self._choices = plan, dict(choices)
        self.input, self.output = values[plan.input], values[plan.output]

    @property
    def packed(self) -> list[cuda_weights.Packed]:
        """The packed weights in use; they are shared as long as something holds them."""
        return [built.weight for built in self._steps if isinstance(built.weight, cuda_weights.Packed)]

    def run(self) -> None:
        """Enqueue every step on the current stream."""
        for step in self._steps:
            step.launch()

    def report(self) -> list[StepReport]:
        """One row a step."""
        return [
            _row(step, built, self._plan, self._choices.get(step.name))
            for step, built in zip(self._plan.steps, self._steps, strict=True)
        ]


def _weight_bytes(step: Step, choice: Choice | None, dtype: torch.dtype) -> int:
    if step.weight is None:
        return 0
    if not isinstance(step.weight, CSR):
        return step.weight.numel() * dtype.itemsize
    if choice is None or choice.method == "dense":
        return step.weight.rows * step.weight.columns * dtype.itemsize
    return cuda_weights.packed_bytes(step.weight, dtype)


def _row(step: Step, built: cuda_steps.Built, plan: Plan, choice: Choice | None) -> StepReport:
    nnz = size = None
    if isinstance(step.weight, CSR):
        nnz, size = step.weight.nnz, step.weight.rows * step.weight.columns
    elif step.weight is not None:
        nnz, size = int(step.weight.count_nonzero()), step.weight.numel()
    return StepReport(
        name=step.name,
        op=step.op,
        fused=fused_names(step),
        kernel=built.kernel,
        shape=plan.values[step.output].shape,
        nnz=nnz,
        size=size,
        bytes=built.nbytes,
        why_dense=None if choice is None else choice.why_dense,
    )
