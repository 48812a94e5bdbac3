"""What an executor decided, as a table for people and as rows for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from finepruning.engine.plan import StepReport


class PlanReport(Sequence[StepReport]):
    """The steps of one plan on one device; ``print`` shows a table.

    Attributes:
        batch: images per call. device: such as "cpu". arena_bytes: activations and scratch of one call.
    """

    def __init__(self, steps: Sequence[StepReport], batch: int, device: str, arena_bytes: int) -> None:
        self.steps = list(steps)
        self.batch, self.device, self.arena_bytes = batch, device, arena_bytes

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[StepReport]:
        return iter(self.steps)

    @overload
    def __getitem__(self, index: int) -> StepReport: ...

    @overload
    def __getitem__(self, index: slice) -> list[StepReport]: ...

    def __getitem__(self, index: int | slice) -> StepReport | list[StepReport]:
        return self.steps[index]

    def __str__(self) -> str:
        rows = [("step", "operation", "kernel", "output", "kept", "bytes", "note")]
        for step in self.steps:
            kept = "" if step.nnz is None or not step.size else f"{step.nnz / step.size:.3f}"
            note = "" if step.why_dense is None else f"dense: {step.why_dense}"
            operation = "+".join((step.op, *step.fused))
            shape = "x".join(str(extent) for extent in step.shape)
            rows.append((step.name, operation, step.kernel, shape, kept, f"{step.bytes:,}", note))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        right = (False, False, False, False, True, True, False)
        lines = [
            "  ".join(
                cell.rjust(width) if align else cell.ljust(width)
                for cell, width, align in zip(row, widths, right, strict=True)
            ).rstrip()
            for row in rows
        ]
        weights = sum(step.bytes for step in self.steps)
        lines.append(
            f"{len(self.steps)} steps, batch {self.batch}, {self.device}: {weights:,} bytes of weights, "
            f"{self.arena_bytes:,} bytes of activations and scratch"
        )
        return "\n".join(lines)

    __repr__ = __str__
