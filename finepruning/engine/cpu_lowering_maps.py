"""Lowers pooling, elementwise work, views and concatenation."""

from __future__ import annotations

import math
from typing import Any

from finepruning import _core
from finepruning.engine.cpu_lowering_base import LoweringBase
from finepruning.engine.cpu_tape import BANDED, LANED, PLANAR, Storage, lane_blocks
from finepruning.engine.plan import Step


class MapLowering(LoweringBase):
    """One method an operation; False means: not expressible natively, use PyTorch."""

    def _pool(self, step: Step, *, maximum: bool) -> bool:
        value, result = self._value(step.inputs[0]), self._value(step.output)
        if len(value.shape) != 4:
            return False
        if step.output in self.tape.storage:  # a convolution pooled its own result
            self._after(step, self._layout(step.output), residual=True, activation=True)
            self._report(step, "fused")
            return True
        attrs = step.attrs
        read = layout = self._layout(step.inputs[0])
        if layout != LANED:
            layout = BANDED if self._in_bands(step.output) else PLANAR
        source = self.tape.need(step.inputs[0], read)
        storage, target = self.tape.new(result, layout)
        lanes = layout == LANED
        arguments: dict[str, Any] = {
            "size": tuple(value.shape[2:]),
            "out": tuple(result.shape[2:]),
            "kernel": tuple(attrs["kernel"]),
            "stride": tuple(attrs["stride"]),
            "padding": tuple(attrs["padding"]),
            "images": lane_blocks(value.shape[0]) if lanes else value.shape[0],
            "channels": value.shape[1],
            "bands": (self._band_rows(step.inputs[0], read), storage.bands.rows if storage.bands else 0),
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
        layout = self._result_layout(step, *([a] if per_channel else [a, b]))
        sources = (
            self.tape.need(a, layout),
            self.tape.need(b, PLANAR if per_channel and layout == BANDED else layout),
        )
        storage, target = self.tape.new(result, layout)
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
            n = storage.bands.pitch if storage.bands else first[2] * first[3]
            self.tape.native(
                step.name,
                lambda p, ids: p.broadcast(
                    *ids,
                    images=images,
                    channels=first[1],
                    n=n,
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
        layout = self._result_layout(step, step.inputs[0])
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
        in_bands = BANDED in storage.buffers  # of which another shape can make nothing
        if step.activation is not None or step.residual is not None or not shape:
            return False
        if shape[0] != storage.images or not storage.buffers or in_bands:
            buffer = self.tape.need(step.inputs[0], PLANAR)
            storage = Storage(shape[0], math.prod(shape[1:]), {PLANAR: buffer})
        self.tape.storage[step.output] = storage
        self._report(step, "view")
        return True

    def _concat(self, step: Step) -> bool:
        result = self._value(step.output).shape
        dim = step.attrs["dim"] % len(result)
        layout = self._result_layout(step, *step.inputs) if dim > 0 else PLANAR
        if layout == BANDED and dim != 1:
            layout = PLANAR
        lanes = layout == LANED
        sources = [self.tape.need(name, layout) for name in step.inputs]
        storage, target = self.tape.new(self._value(step.output), layout)
        outer = math.prod(result[1:dim]) * (lane_blocks(result[0]) if lanes else result[0]) if dim > 0 else 1
        inner = math.prod(result[dim + 1 :]) * (_core.lanes() if lanes else 1)
        if storage.bands:
            inner = storage.bands.pitch
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
