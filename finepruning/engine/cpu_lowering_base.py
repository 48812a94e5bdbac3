"""What lowering every kind of step to the CPU's tape has in common."""

from __future__ import annotations

import math

import torch

from finepruning.engine.cpu_fallback import step_filler, step_runner
from finepruning.engine.cpu_tape import BANDED, LANED, PLANAR, Bands, Buffer, Call, Storage, Tape
from finepruning.engine.plan import Plan, Step, StepReport, Value
from finepruning.sparse.csr import CSR

# Operations that read maps in bands.
_READ_BANDS = {"conv2d", "max_pool2d", "avg_pool2d", "add", "mul", "identity", "concat"}


class LoweringBase:
    """A plan, the tape it becomes, and a report for each step."""

    def __init__(self, plan: Plan, sharing: int = 1) -> None:
        """``sharing``: threads that share an image."""
        self.plan = plan
        self.tape = Tape(sharing)
        self.reports: list[StepReport] = []
        self.looping = False  # over chunks of the batch
        self.tape.storage[plan.input] = self._input_storage(plan)

    def _input_storage(self, plan: Plan) -> Storage:
        source = plan.values[plan.input]
        storage = Storage(source.shape[0], math.prod(source.shape[1:]), tensor=plan.input)
        if source.dtype == torch.float32:
            storage.buffers[PLANAR] = Buffer(storage.size(PLANAR), "input")
        return storage

    def _value(self, name: str) -> Value:
        return self.plan.values[name]

    def _report(self, step: Step, kernel: str, size: int = 0, why_dense: str | None = None) -> None:
        weight = step.weight
        nnz = dense = None
        if isinstance(weight, CSR):
            nnz, dense = weight.nnz, weight.rows * weight.columns
        elif weight is not None:
            nnz, dense = int(torch.count_nonzero(weight)), weight.numel()
        fused = ["bias"] if step.bias is not None else []
        fused += ["add"] if step.residual is not None else []
        fused += [step.activation] if step.activation is not None else []
        shape = self._value(step.output).shape
        self.reports.append(
            StepReport(step.name, step.op, tuple(fused), kernel, shape, nnz, dense, size, why_dense)
        )

    def _native_input(self, name: str) -> bool:
        return self._value(name).dtype == torch.float32

    def _layout(self, *names: str) -> str:
        """The layout in which the inputs are at hand; planar when they differ."""
        for layout in (PLANAR, BANDED, LANED):
            if all(self.tape.has(name, layout) for name in names):
                return layout
        return PLANAR

    def _result_layout(self, step: Step, *names: str) -> str:
        """The same for a step whose result lies as its inputs do, and to which its residual is added."""
        layout = self._layout(*names)
        banded = layout == BANDED and step.residual is not None
        return PLANAR if banded and not self.tape.has(step.residual or "", BANDED) else layout

    def _in_bands(self, name: str) -> bool:
        """Whether a planar map that is about to be made should lie in bands, as all that reads it can."""
        value = self._value(name)
        if self.looping or self.tape.sharing == 1 or name == self.plan.output:
            return False
        if len(value.shape) != 4 or value.shape[0] != self.plan.batch:
            return False
        if Bands.of(value.shape[1], (value.shape[2], value.shape[3]), self.tape.sharing).count == 1:
            return False
        producer = next(step for step in self.plan.steps if step.output == name)
        added = producer.residual
        if added is not None and (added not in self.tape.storage or not self.tape.has(added, BANDED)):
            return False
        readers = [step for step in self.plan.steps if name in (*step.inputs, step.residual)]
        return all(step.op in _READ_BANDS and not isinstance(step.weight, torch.Tensor) for step in readers)

    def _band_rows(self, name: str, layout: str) -> int:
        """Rows of the value's bands in this layout; 0 if it lies whole."""
        bands = self.tape.storage[name].bands
        return bands.rows if layout == BANDED and bands is not None else 0

    def _after(self, step: Step, layout: str, *, residual: bool, activation: bool) -> None:
        """Adds what the kernel could not fuse, in place."""
        target = self.tape.need(step.output, layout)
        n = target.size
        if residual and step.residual is not None:
            other = self.tape.need(step.residual, layout)
            name = (step.activation or "none") if activation else "none"
            self.tape.native(
                step.name,
                lambda p, ids: p.elementwise(ids[0], ids[1], ids[0], n=n, op="add", activation=name),
                target,
                other,
            )
        elif activation and step.activation is not None:
            name = step.activation
            self.tape.native(
                step.name, lambda p, ids: p.elementwise(ids[0], -1, ids[0], n=n, activation=name), target
            )

    def _call(self, step: Step, why_dense: str | None = None) -> None:
        """Runs the step through PyTorch."""
        load = {}
        for name in {*step.inputs, *([step.residual] if step.residual else [])}:
            if self.tape.storage[name].tensor != name:
                load[name] = (self.tape.need(name, PLANAR), self._value(name).shape)
        value = self._value(step.output)
        run = step_runner(self.plan, step)
        fill = step_filler(self.plan, step)
        if fill is not None:
            _, target = self.tape.new(value, PLANAR)
            self.tape.operations.append(Call(step.name, run, load, step.output, target, fill))
        else:
            self.tape.operations.append(Call(step.name, run, load, step.output))
            images = value.shape[0] if value.shape else 1
            self.tape.storage[step.output] = Storage(images, math.prod(value.shape[1:]), tensor=step.output)
        size = 0
        if step.weight is not None:
            weight = step.weight
            size = 4 * weight.rows * weight.columns if isinstance(weight, CSR) else weight.nbytes
        self._report(step, "aten", size, why_dense)
