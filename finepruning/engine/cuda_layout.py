"""Where each value of a plan lives on a GPU: memory order, border, sharing, and offset in the arena."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from finepruning.engine.cpu_arena import Slot, place
from finepruning.engine.cuda_choice import Choice
from finepruning.engine.plan import Plan, Step

Order = Literal["contiguous", "channels_last", "batch_innermost"]


@dataclass
class Placement:
    """Memory of one value.

    Attributes:
        order: of the dimensions in memory. halo: width of the zero border (batch_innermost, rank 4).
        source: the value whose memory this one shares, for a view that moves nothing.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    order: Order
    halo: int = 0
    source: str | None = None

    @property
    def numel(self) -> int:
        if self.halo:
            n, c, h, w = self.shape
            return n * c * (h + 2 * self.halo) * (w + 2 * self.halo)
        return math.prod(self.shape)

    def view(self, memory: Tensor) -> Tensor:
        """The value as a logical tensor (batch first) over one-dimensional ``memory`` of its dtype."""
        memory = memory[: self.numel]
        if self.order == "batch_innermost" and len(self.shape) == 4:
            n, c, h, w = self.shape
            p = self.halo
            padded = memory.view(c, h + 2 * p, w + 2 * p, n)
            return padded[:, p : p + h, p : p + w, :].permute(3, 0, 1, 2)
        if self.order == "batch_innermost":
            return memory.view(*self.shape[1:], self.shape[0]).t()
        if self.order == "channels_last":
            n, c, h, w = self.shape
            return memory.view(n, h, w, c).permute(0, 3, 1, 2)
        return memory.view(self.shape)


def placements(
    plan: Plan, choices: Mapping[str, Choice], dense_order: Literal["contiguous", "channels_last"]
) -> dict[str, Placement]:
    """Decide the memory order of every value.

    Sparse kernels read batch-innermost memory with a border as wide as their padding; tensor cores read
    ``dense_order``. Everything else takes any strides, so a value follows the step that reads it, and
    batch-innermost wins where both kinds read it. Channels that a dense convolution writes side by side stay
    so for a pool and the like: to turn a large map over costs more than the convolution.
    """
    sparse = {name for name, choice in choices.items() if choice.method == "sparse"}
    readers: dict[str, list[Step]] = {name: [] for name in plan.values}
    for step in plan.steps:
        for name in {*step.inputs, *([step.residual] if step.residual else [])}:
            readers[name].append(step)
    maker = {step.output: step for step in plan.steps}
    result: dict[str, Placement] = {}
    for name in [plan.input, *(step.output for step in plan.steps)]:
        value = plan.values[name]
        made = maker.get(name)
        order, halo = _order(name, len(value.shape), made, readers[name], sparse, dense_order)
        placement = Placement(tuple(value.shape), value.dtype, order, halo)
        if made is not None and made.op == "view" and made.residual is None and made.activation is None:
            _share(placement, made.inputs[0], result[made.inputs[0]])
        result[name] = placement
    return result


def _order(
    name: str,
    rank: int,
    made: Step | None,
    readers: list[Step],
    sparse: set[str],
    dense_order: Literal["contiguous", "channels_last"],
) -> tuple[Order, int]:
    by_sparse = [step for step in readers if step.name in sparse and step.inputs[0] == name]
    if rank == 2:
        return ("batch_innermost" if by_sparse else "contiguous"), 0
    if rank != 4:
        return "contiguous", 0
    if by_sparse:
        return "batch_innermost", max(max(step.attrs["padding"]) for step in by_sparse)
    if any(step.op == "conv2d" for step in readers) or not sparse:
        return dense_order, 0
    dense = made is not None and made.op == "conv2d" and made.name not in sparse
    if dense and dense_order == "channels_last" and not any(step.op == "view" for step in readers):
        return "channels_last", 0
    return "batch_innermost", 0


def _share(target: Placement, name: str, source: Placement) -> None:
    """Let a view share the memory of its source where the elements lie in the same order."""
    if source.halo or target.halo:
        return
    batch = source.shape[0]
    source_order = "contiguous" if batch == 1 and source.order == "batch_innermost" else source.order
    if source_order == "channels_last" and math.prod(source.shape[2:]) == 1:
        source_order = "contiguous"
    same_batch = target.shape[:1] == source.shape[:1]
    if source_order == "batch_innermost" and same_batch and len(target.shape) == 2:
        target.order = "batch_innermost"
    elif source_order == "contiguous":
        if target.order != "contiguous" and not (target.shape[0] == 1 and target.order == "batch_innermost"):
            return
    else:
        return
    target.source = source.source or name


def arena(
    plan: Plan, placed: Mapping[str, Placement], scratch: Mapping[str, int]
) -> tuple[dict[str, int], int]:
    """Offsets in bytes of every value that a step makes, and of each step's scratch; and the total.

    Args:
        scratch: step name -> bytes it needs only while it runs; its offset has the key ``"scratch:" + name``.

    Values are live from the step that makes them to the last that reads them or a view of them. The
    input has memory of its own, because it is written outside the captured graph.
    """
    owner = {name: placement.source or name for name, placement in placed.items()}
    slots: dict[str, Slot] = {}
    end = len(plan.steps)
    for index, step in enumerate(plan.steps):
        for name in (*step.inputs, *([step.residual] if step.residual else [])):
            if owner[name] in slots:
                slots[owner[name]].last = index
        if owner[step.output] == step.output:
            placement = placed[step.output]
            slots[step.output] = Slot(_floats(placement.numel * placement.dtype.itemsize), index, index)
        if scratch.get(step.name):
            slots[f"scratch:{step.name}"] = Slot(_floats(scratch[step.name]), index, index)
    if owner[plan.output] in slots:
        slots[owner[plan.output]].last = end
    total = place(list(slots.values()))
    return {name: slot.offset * 4 for name, slot in slots.items()}, total * 4


def _floats(size: int) -> int:
    return -(-size // 4)
