"""Chooses layout and kernel for every step of a plan on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from finepruning import _core
from finepruning.engine.cpu_lowering_maps import MapLowering
from finepruning.engine.cpu_schedule import in_lanes, outliving
from finepruning.engine.cpu_tape import BANDED, LANED, PLANAR, Bands, Buffer, Storage, lane_blocks
from finepruning.engine.cpu_weights import csr_arrays, geometry, packed_conv, reads_every_nth, unstrided
from finepruning.engine.plan import Plan, Step
from finepruning.sparse.csr import CSR

MATRIX_ROWS = 64  # that share one reading of the weights of a fully connected layer
FUSED = (None, "relu", "relu6")


class Lowering(MapLowering):
    """Turns the steps of a plan into operations on a tape, with a report for each."""

    def __init__(
        self,
        plan: Plan,
        looped: int = 0,
        chunk: Plan | None = None,
        why_dense: Mapping[str, str] | None = None,
        threads: int = 1,
    ) -> None:
        """``chunk`` is the plan for the images of one chunk, of which the first ``looped`` steps are taken.

        See `finepruning.engine.cpu_schedule`. ``why_dense``: reasons, by names of steps.
        ``threads``: that will most likely run it, for the choice of tiles.
        """
        super().__init__(plan, 1 if in_lanes(plan.batch) else max(1, threads // plan.batch))
        self._why_dense = why_dense or {}
        self._threads = threads
        if chunk is not None:
            self._loop(looped, chunk)
        self._together = plan.steps[looped if chunk is not None else 0 :]
        for step in self._together:
            self._lower(step)
        self._finish()

    def _loop(self, steps: int, chunk: Plan) -> None:
        """Lower the first steps for one chunk, as a loop whose results are the whole batch's."""
        turns = self.plan.batch // chunk.batch
        whole, self.plan = self.plan, chunk
        source = self._input_storage(chunk)
        given = source.buffers[PLANAR]
        given.turns = turns
        self.tape.storage[whole.input] = source
        self.looping = True
        self._together = chunk.steps[:steps]
        for step in self._together:
            self._lower(step)
        self.looping = False
        self.plan = whole
        self.tape.loop = (len(self.tape.operations), turns)
        kept = {name: self.tape.storage[name] for name in outliving(whole, steps)}
        self.tape.storage[whole.input] = self._input_storage(whole)
        for name, storage in kept.items():
            window = storage.buffers[PLANAR]
            if window is given:
                self.tape.storage[name] = self.tape.storage[whole.input]
                continue
            if window.whole is None:
                window.whole, window.turns = Buffer(window.size * turns), turns
            images = storage.images * turns
            self.tape.storage[name] = Storage(images, storage.floats, {PLANAR: window.whole})
        self.reports = [
            replace(report, shape=whole.values[step.output].shape)
            for report, step in zip(self.reports, whole.steps, strict=False)
        ]

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

    def _lower(self, step: Step) -> None:
        lower: Callable[[Step], bool] | None = getattr(self, f"_{step.op}", None)
        operands = [*step.inputs, *([step.residual] if step.residual else [])]
        native = all(self._native_input(name) for name in [*operands, step.output])
        if step.residual and self._value(step.residual).shape != self._value(step.output).shape:
            native = False
        if lower is None or not native or 0 in self._value(step.output).shape or not lower(step):
            self._call(step)

    def _sparse(self, step: Step) -> CSR | None:
        """The step's weight if a sparse kernel should run it; else PyTorch will."""
        if isinstance(step.weight, CSR):
            return step.weight
        self._call(step, self._why_dense.get(step.name))
        return None

    def _conv2d(self, step: Step) -> bool:
        weight = self._sparse(step)
        if weight is None:
            return True
        shape = self._value(step.inputs[0]).shape
        if len(shape) != 4:
            return False
        pool = self._pool_of(step)
        if in_lanes(shape[0]) and not self.looping:
            images = lane_blocks(shape[0])
            packed = packed_conv(
                weight,
                mapping=LANED,
                pooled=pool is not None,
                threads=max(1, self._threads // images),
                **geometry(step, shape),
            )
            self._emit_conv(step, LANED, packed, images, pool if packed.pooled else None)
        else:
            packed = self._planar_conv(step, weight, pool)
        self._report(step, packed.kernel, packed.nbytes)
        return True

    def _planar_conv(self, step: Step, weight: CSR, pool: Step | None) -> _core.PackedConv:
        shape = self._value(step.inputs[0]).shape
        described = geometry(step, shape)
        read = BANDED if self.tape.has(step.inputs[0], BANDED) else PLANAR
        source, band = None, self._band_rows(step.inputs[0], read)
        if reads_every_nth(described):
            source, band = self._every_nth(step, described, read)
            described = unstrided(described)
        written = [step.output, *([pool.output] if pool else [])]
        banded = all(self._in_bands(name) for name in written)
        packed = packed_conv(
            weight,
            mapping=PLANAR,
            pooled=pool is not None,
            threads=max(1, self._threads // shape[0]),
            source_band=band,
            banded=banded,
            **described,
        )
        layout = BANDED if banded else PLANAR
        self._emit_conv(
            step,
            layout,
            packed,
            shape[0],
            pool if packed.pooled else None,
            source or self.tape.need(step.inputs[0], read),
        )
        return packed

    def _every_nth(self, step: Step, described: Mapping[str, Any], read: str) -> tuple[Buffer, int]:
        """The positions that a strided pointwise convolution reads, as a map of their own; rows of its bands.

        Neighbours of the flattened output are then neighbours of the input, too, and fill any tile.
        """
        size = unstrided(described)["size"]
        images, channels = self._value(step.inputs[0]).shape[:2]
        bands = Bands.of(channels, size, 1 if self.looping else self.tape.sharing)
        source_rows = self._band_rows(step.inputs[0], read)
        target = Buffer(images * bands.floats, bands=bands.count)
        self.tape.native(
            step.name,
            lambda p, ids: p.pool(
                ids[0],
                ids[1],
                size=described["size"],
                out=size,
                kernel=(1, 1),
                stride=described["stride"],
                padding=(0, 0),
                images=images,
                channels=channels,
                bands=(source_rows, bands.rows),
                lanes=False,
                maximum=True,
            ),
            self.tape.need(step.inputs[0], read),
            target,
        )
        return target, bands.rows

    def _pool_of(self, step: Step) -> Step | None:
        """The maximum over 2x2 windows that takes this convolution's result and is all that does."""
        readers = [s for s in self.plan.steps if step.output in (*s.inputs, s.residual)]
        if len(readers) != 1 or step.output == self.plan.output or step.residual is not None:
            return None
        if not any(readers[0] is other for other in self._together):
            return None  # the loop over chunks ends between the two
        pool, height, width = readers[0], *self._value(step.output).shape[2:]
        halves = self._value(pool.output).shape[2:] == (height // 2, width // 2)
        if pool.op != "max_pool2d" or not halves or step.activation not in FUSED:
            return None
        attrs = pool.attrs
        windows = tuple(attrs["kernel"]) == tuple(attrs["stride"]) == (2, 2)
        plain = tuple(attrs["padding"]) == (0, 0) and tuple(attrs["dilation"]) == (1, 1)
        return pool if windows and plain else None

    def _emit_conv(
        self,
        step: Step,
        layout: str,
        packed: Any,
        images: int,
        pool: Step | None = None,
        source: Buffer | None = None,
    ) -> None:
        """``layout``: of the residual and the result; of the input too unless ``source`` is given."""
        buffers = [source or self.tape.need(step.inputs[0], layout)]
        if step.residual is not None:
            buffers.append(self.tape.need(step.residual, layout))
        storage, target = self.tape.new(self._value((pool or step).output), layout)
        if self._replaces_residual(step, buffers):
            target = storage.buffers[layout] = buffers[1]
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
        if pool is None:
            self._after(step, layout, residual=False, activation=activation != step.activation)

    def _replaces_residual(self, step: Step, buffers: list[Buffer]) -> bool:
        """Whether a convolution may write its result over its residual, because nothing else reads that.

        Every element is read just before it is written. A result elsewhere would move a third memory block
        through the caches: its lines are fetched before they are overwritten.
        """
        if step.residual is None or buffers[1] is buffers[0] or buffers[1].kind != "arena":
            return False
        stored = self.tape.storage.items()
        names = {name for name, storage in stored if buffers[1] in storage.buffers.values()}  # and its views
        position = next(i for i, other in enumerate(self.plan.steps) if other is step)
        later = {name for s in self.plan.steps[position + 1 :] for name in (*s.inputs, s.residual)}
        return not names & {*step.inputs, *later, self.plan.output}

    def _linear(self, step: Step) -> bool:
        weight = self._sparse(step)
        if weight is None:
            return True
        shape = self._value(step.inputs[0]).shape
        rows = math.prod(shape[:-1])
        if rows == 1:
            self._gather_linear(step, weight)
            return True
        packed = packed_conv(
            weight,
            mapping="matrix",
            matrix_blocks=lane_blocks(min(rows, MATRIX_ROWS)),
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
        """Planar rows of a tensor of more than two dimensions, side by side in vectors and back."""
        source = self.tape.need(step.inputs[0], PLANAR)
        _, target = self.tape.new(self._value(step.output), PLANAR)
        columns, outputs = source.size // rows, target.size // rows
        blocks = lane_blocks(rows)
        padded = blocks * _core.lanes()
        packed_in, packed_out = Buffer(padded * columns), Buffer(padded * outputs)
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
                **csr_arrays(weight),
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
        size = (weight.values.element_size() + 2) * weight.nnz + 4 * (weight.rows + 1)
        self._report(step, f"gather_rows_{_core.map_isa()}", size)
