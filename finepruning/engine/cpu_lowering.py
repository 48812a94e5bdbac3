"""Chooses layout and kernel for every step of a plan on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from finepruning.engine.cpu_fallback import step_runner
from finepruning.engine.cpu_tape import LANED, LANES, PLANAR, Buffer, Call, Storage, Tape, lane_blocks
from finepruning.engine.cpu_weights import csr_arrays, packed_conv
from finepruning.engine.plan import Plan, Step, StepReport, Value
from finepruning.sparse.csr import CSR

# From so many images on, 16 to a vector beat one after the other even with lanes left empty.
LANE_BATCH = 12
# Above this share of nonzeros a dense kernel does more useful work per second than a sparse one.
DENSE_ABOVE = 0.6
MAX_GATHER_COLUMNS = 65536
FUSED = (None, "relu", "relu6")


class Lowering:
    """Turns the steps of a plan into operations on a tape, with a report for each."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tape = Tape()
        self.reports: list[StepReport] = []
        source = plan.values[plan.input]
        storage = Storage(source.shape[0], math.prod(source.shape[1:]), tensor=plan.input)
        if source.dtype == torch.float32:
            storage.buffers[PLANAR] = Buffer(storage.size(PLANAR), "input")
        self.tape.storage[plan.input] = storage
        for step in plan.steps:
            self._lower(step)
        self._finish()

    def _finish(self) -> None:
        """The result goes to the caller's tensor: written there by its last step where that is possible."""
        storage = self.tape.storage[self.plan.output]
        if not storage.buffers:
            return
        buffer = self.tape.need(self.plan.output, PLANAR)
        if buffer.kind == "input":
            target = Buffer(buffer.size, "output")
            self.tape.native(
                "output", lambda p, ids: p.elementwise(ids[0], -1, ids[1], n=target.size), buffer, target
            )
        else:
            buffer.kind = "output"

    # -- helpers --------------------------------------------------------------------------------------

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
        shared = all(self.tape.has(name, LANED) for name in names)
        planar = all(self.tape.has(name, PLANAR) for name in names)
        return LANED if shared and not planar else PLANAR

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

    def _lower(self, step: Step) -> None:
        lower: Callable[[Step], bool] | None = getattr(self, f"_{step.op}", None)
        operands = [*step.inputs, *([step.residual] if step.residual else [])]
        native = all(self._native_input(name) for name in [*operands, step.output])
        if step.residual and self._value(step.residual).shape != self._value(step.output).shape:
            native = False
        if lower is None or not native or 0 in self._value(step.output).shape or not lower(step):
            self._call(step)

    def _call(self, step: Step, why_dense: str | None = None) -> None:
        """Runs the step through PyTorch."""
        load = {}
        for name in {*step.inputs, *([step.residual] if step.residual else [])}:
            if self.tape.storage[name].tensor != name:
                load[name] = (self.tape.need(name, PLANAR), self._value(name).shape)
        run = step_runner(self.plan, step)
        self.tape.operations.append(Call(step.name, run, load, step.output))
        value = self._value(step.output)
        images = value.shape[0] if value.shape else 1
        self.tape.storage[step.output] = Storage(images, math.prod(value.shape[1:]), tensor=step.output)
        size = 0
        if step.weight is not None:
            weight = step.weight
            size = 4 * weight.rows * weight.columns if isinstance(weight, CSR) else weight.nbytes
        self._report(step, "aten", size, why_dense)

    # -- one method an operation; False means: not expressible, use PyTorch -----------------------------

    def _sparse(self, step: Step) -> CSR | None:
        """The step's weight if a sparse kernel should run it."""
        weight = step.weight
        if isinstance(weight, Tensor):
            return None
        if weight is None or weight.density > DENSE_ABOVE:
            self._call(step, f"density {weight.density:.2f} > {DENSE_ABOVE}" if weight is not None else None)
            return None
        return weight

    def _conv2d(self, step: Step) -> bool:
        weight = self._sparse(step)
        if weight is None:
            return not isinstance(step.weight, Tensor)
        shape = self._value(step.inputs[0]).shape
        if len(shape) != 4:
            return False
        layout = LANED if shape[0] >= LANE_BATCH else PLANAR
        attrs = step.attrs
        packed = packed_conv(
            weight,
            mapping=layout,
            channels=shape[1],
            size=tuple(shape[2:]),
            outputs=weight.rows,
            kernel=tuple(weight.shape[2:]),
            stride=tuple(attrs["stride"]),
            padding=tuple(attrs["padding"]),
            dilation=tuple(attrs["dilation"]),
            groups=attrs["groups"],
        )
        images = lane_blocks(shape[0]) if layout == LANED else shape[0]
        self._emit_conv(step, layout, packed, images)
        self._report(step, packed.kernel, packed.nbytes)
        return True

    def _emit_conv(self, step: Step, layout: str, packed: Any, images: int) -> None:
        source = self.tape.need(step.inputs[0], layout)
        buffers = [source]
        if step.residual is not None:
            buffers.append(self.tape.need(step.residual, layout))
        _, target = self.tape.new(self._value(step.output), layout)
        activation = step.activation if step.activation in FUSED else None
        bias = None if step.bias is None else step.bias.detach().float().contiguous().numpy()
        has_residual = step.residual is not None
        self.tape.native(
            step.name,
            lambda p, ids: p.conv(
                ids[0],
                ids[-1],
                packed,
                bias=bias,
                residual=ids[1] if has_residual else -1,
                activation=activation or "none",
                images=images,
            ),
            *buffers,
            target,
        )
        self._after(step, layout, residual=False, activation=activation != step.activation)

    def _linear(self, step: Step) -> bool:
        weight = self._sparse(step)
        if weight is None:
            return not isinstance(step.weight, Tensor)
        shape = self._value(step.inputs[0]).shape
        rows = math.prod(shape[:-1])
        if rows == 1 and weight.columns <= MAX_GATHER_COLUMNS:
            self._gather_linear(step, weight)
            return True
        packed = packed_conv(
            weight,
            mapping="matrix",
            channels=weight.columns,
            size=(1, 1),
            outputs=weight.rows,
            kernel=(1, 1),
            stride=(1, 1),
            padding=(0, 0),
            dilation=(1, 1),
            groups=1,
        )
        if len(shape) == 2 or self.tape.has(step.inputs[0], LANED):
            blocks = lane_blocks(shape[0]) * (rows // shape[0])
            self._emit_conv(step, LANED, packed, blocks)
        else:
            self._rows_linear(step, packed, rows)
        self._report(step, packed.kernel, packed.nbytes)
        return True

    def _rows_linear(self, step: Step, packed: Any, rows: int) -> None:
        """Planar rows of a tensor of more than two dimensions, 16 rows a vector and back."""
        source = self.tape.need(step.inputs[0], PLANAR)
        _, target = self.tape.new(self._value(step.output), PLANAR)
        columns, outputs = source.size // rows, target.size // rows
        blocks = lane_blocks(rows)
        packed_in, packed_out = Buffer(blocks * LANES * columns), Buffer(blocks * LANES * outputs)
        name = step.name
        native = self.tape.native
        native(
            name,
            lambda p, ids: p.transpose(ids[0], ids[1], images=rows, n=columns, to_lanes=True),
            source,
            packed_in,
        )
        bias = None if step.bias is None else step.bias.detach().float().contiguous().numpy()
        activation = step.activation if step.residual is None and step.activation in FUSED else None
        native(
            name,
            lambda p, ids: p.conv(
                ids[0], ids[1], packed, bias=bias, activation=activation or "none", images=blocks
            ),
            packed_in,
            packed_out,
        )
        native(
            name,
            lambda p, ids: p.transpose(ids[0], ids[1], images=rows, n=outputs, to_lanes=False),
            packed_out,
            target,
        )
        self._after(step, PLANAR, residual=True, activation=activation != step.activation)

    def _gather_linear(self, step: Step, weight: CSR) -> None:
        source = self.tape.need(step.inputs[0], PLANAR)
        buffers = [source]
        if step.residual is not None:
            buffers.append(self.tape.need(step.residual, PLANAR))
        _, target = self.tape.new(self._value(step.output), PLANAR)
        activation = step.activation if step.activation in FUSED else None
        bias = None if step.bias is None else step.bias.detach().float().contiguous().numpy()
        has_residual = step.residual is not None
        self.tape.native(
            step.name,
            lambda p, ids: p.gather_linear(
                ids[0],
                ids[-1],
                *csr_arrays(weight),
                columns=weight.columns,
                bias=bias,
                residual=ids[1] if has_residual else -1,
                activation=activation or "none",
                images=1,
            ),
            *buffers,
            target,
        )
        self._after(step, PLANAR, residual=False, activation=activation != step.activation)
        self._report(step, "gather_rows", 6 * weight.nnz + 4 * (weight.rows + 1))

    def _pool(self, step: Step, *, maximum: bool) -> bool:
        value, result = self._value(step.inputs[0]), self._value(step.output)
        if len(value.shape) != 4:
            return False
        attrs = step.attrs
        layout = self._layout(step.inputs[0])
        source = self.tape.need(step.inputs[0], layout)
        _, target = self.tape.new(result, layout)
        lanes = layout == LANED
        planes = (lane_blocks(value.shape[0]) if lanes else value.shape[0]) * value.shape[1]
        arguments: dict[str, Any] = {
            "size": tuple(value.shape[2:]),
            "out": tuple(result.shape[2:]),
            "kernel": tuple(attrs["kernel"]),
            "stride": tuple(attrs["stride"]),
            "padding": tuple(attrs["padding"]),
            "planes": planes,
            "lanes": lanes,
            "maximum": maximum,
        }
        if maximum:
            arguments["dilation"] = tuple(attrs["dilation"])
        else:
            arguments["count_include_pad"] = bool(attrs["count_include_pad"])
            arguments["divisor"] = attrs["divisor_override"] or 0
        self.tape.native(step.name, lambda p, ids: p.pool(ids[0], ids[1], **arguments), source, target)
        self._after(step, layout, residual=True, activation=True)
        self._report(step, "pool_lanes" if lanes else "pool")
        return True

    def _max_pool2d(self, step: Step) -> bool:
        return self._pool(step, maximum=True)

    def _avg_pool2d(self, step: Step) -> bool:
        return self._pool(step, maximum=False)

    def _add(self, step: Step) -> bool:
        return self._binary(step, "add")

    def _mul(self, step: Step) -> bool:
        return self._binary(step, "mul")

    def _binary(self, step: Step, op: str) -> bool:
        a, b = step.inputs
        result = self._value(step.output)
        if self._value(a).shape != result.shape:
            a, b = b, a
        first, second = self._value(a).shape, self._value(b).shape
        if first != result.shape:
            return False
        per_channel = len(first) == 4 and second == (*first[:2], 1, 1)
        if second != first and not per_channel:
            return False
        layout = self._layout(a, b) if not per_channel else self._layout(a)
        sources = self.tape.need(a, layout), self.tape.need(b, layout)
        _, target = self.tape.new(result, layout)
        activation = "none" if step.residual else step.activation or "none"
        if second == first:
            self.tape.native(
                step.name,
                lambda p, ids: p.elementwise(
                    ids[0], ids[1], ids[2], n=target.size, op=op, activation=activation
                ),
                *sources,
                target,
            )
        else:
            lanes = layout == LANED
            images = lane_blocks(first[0]) if lanes else first[0]
            self.tape.native(
                step.name,
                lambda p, ids: p.broadcast(
                    *ids,
                    images=images,
                    channels=first[1],
                    n=first[2] * first[3],
                    lanes=lanes,
                    op=op,
                    activation=activation,
                ),
                *sources,
                target,
            )
        self._after(step, layout, residual=True, activation=step.residual is not None)
        self._report(step, "elementwise" if second == first else "broadcast")
        return True

    def _identity(self, step: Step) -> bool:
        if step.activation is None and step.residual is None:
            self.tape.storage[step.output] = self.tape.storage[step.inputs[0]]
            self._report(step, "view")
            return True
        layout = self._layout(step.inputs[0])
        source = self.tape.need(step.inputs[0], layout)
        _, target = self.tape.new(self._value(step.output), layout)
        activation = "none" if step.residual else step.activation or "none"
        self.tape.native(
            step.name,
            lambda p, ids: p.elementwise(ids[0], -1, ids[1], n=target.size, activation=activation),
            source,
            target,
        )
        self._after(step, layout, residual=True, activation=step.residual is not None)
        self._report(step, "elementwise")
        return True

    def _view(self, step: Step) -> bool:
        storage = self.tape.storage[step.inputs[0]]
        shape = self._value(step.output).shape
        if step.activation is not None or step.residual is not None or not shape:
            return False
        if shape[0] != storage.images or not storage.buffers:
            buffer = self.tape.need(step.inputs[0], PLANAR)
            storage = Storage(shape[0], math.prod(shape[1:]), {PLANAR: buffer})
        self.tape.storage[step.output] = storage
        self._report(step, "view")
        return True

    def _concat(self, step: Step) -> bool:
        result = self._value(step.output).shape
        dim = step.attrs["dim"] % len(result)
        layout = self._layout(*step.inputs) if dim > 0 else PLANAR
        lanes = layout == LANED
        sources = [self.tape.need(name, layout) for name in step.inputs]
        _, target = self.tape.new(self._value(step.output), layout)
        outer = math.prod(result[1:dim]) * (lane_blocks(result[0]) if lanes else result[0]) if dim > 0 else 1
        inner = math.prod(result[dim + 1 :]) * (LANES if lanes else 1)
        stride = result[dim] * inner
        offset = 0
        for name, source in zip(step.inputs, sources, strict=True):
            n = self._value(name).shape[dim] * inner
            if n == 0:
                continue
            self.tape.native(
                step.name,
                lambda p, ids, n=n, offset=offset: p.copy(  # type: ignore[misc]
                    ids[0], ids[1], images=outer, n=n, target_offset=offset, target_stride=stride
                ),
                source,
                target,
            )
            offset += n
        self._after(step, layout, residual=True, activation=True)
        self._report(step, "copy")
        return True
