"""The CPU executor's list of operations: native steps over buffers, and calls into PyTorch.

Layouts: "planar" is PyTorch's own order, one image after the other. "lanes" puts so many images
side by side as a vector of the instruction set holds (16, 8 or 4):
``[images / lanes][channels][height][width][lanes]``, lanes without an image hold zeros or stale numbers.
"bands" is for threads that share an image: the map is cut into bands of rows, each of them
``[images][channels][rows of a band]``, and each plane of a band is filled up to whole cache lines with stale
numbers. The same bands of all maps share a part of the arena, so that a thread works on lines that hardly any
other touches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from finepruning import _core
from finepruning.engine.cpu_arena import ALIGNMENT, Slot, place
from finepruning.engine.plan import Value

PLANAR = "planar"
LANED = "lanes"
BANDED = "bands"

Emit = Callable[[_core.Program, Sequence[int]], None]


def lane_blocks(images: int) -> int:
    """Vectors that hold ``images`` images side by side."""
    return -(-images // _core.lanes())


@dataclass(eq=False)
class Buffer:
    """Floats in the arena, or the caller's input or output.

    Attributes:
        size: floats, of each of its ``bands``. kind: "arena", "input" or "output".
        whole: what this is a window of, which moves on by its size in every turn of the loop.
        turns: of that loop; a window of the caller's input has them without a ``whole``.
    """

    size: int
    kind: str = "arena"
    whole: Buffer | None = None
    turns: int = 1
    bands: int = 1


@dataclass(frozen=True)
class Bands:
    """How a map of ``channels`` and ``size`` is cut into bands: their rows and count, floats of a plane."""

    channels: int
    size: tuple[int, int]
    rows: int
    count: int
    pitch: int

    @classmethod
    def of(cls, channels: int, size: tuple[int, int], threads: int) -> Bands:
        return cls(channels, size, *_core.bands(size, threads=threads))

    @property
    def floats(self) -> int:
        """Of a band of one image."""
        return self.channels * self.pitch


@dataclass(eq=False)
class Storage:
    """Where one value (and its views) lives: native buffers by layout, a tensor, or both."""

    images: int
    floats: int  # per image
    buffers: dict[str, Buffer] = field(default_factory=dict)
    tensor: str | None = None  # name under which the call's tensors hold it
    bands: Bands | None = None  # of its buffer in bands

    def size(self, layout: str) -> int:
        if layout == BANDED:
            assert self.bands is not None
            return self.images * self.bands.floats
        images = lane_blocks(self.images) * _core.lanes() if layout == LANED else self.images
        return images * self.floats


@dataclass
class Native:
    """One native step. ``emit`` receives the ids of ``buffers`` in their order."""

    name: str
    buffers: tuple[Buffer, ...]
    emit: Emit


@dataclass
class Call:
    """One step through PyTorch: ``run`` maps the call's tensors to the result.

    ``load`` names the tensors it needs that live in planar buffers, with their shapes; the result is kept
    as tensor ``output`` or, when ``store`` is given, copied into that buffer.
    """

    name: str
    run: Callable[[dict[str, Tensor]], Tensor]
    load: dict[str, tuple[Buffer, tuple[int, ...]]]
    output: str
    store: Buffer | None = None
    fill: Callable[[dict[str, Tensor], Tensor], None] | None = None  # writes the result there, instead of run


Operation = Native | Call


class Tape:
    """Collects operations, then places their buffers and emits the native program."""

    def __init__(self, sharing: int = 1) -> None:
        """``sharing``: threads that share an image, for the layout in bands."""
        self.sharing = sharing
        self.operations: list[Operation] = []
        self.loop: tuple[int, int] | None = None  # so many operations from the first on run so many times
        self.storage: dict[str, Storage] = {}

    def new(self, value: Value, layout: str) -> tuple[Storage, Buffer]:
        """Storage for a value that a native step is about to produce."""
        storage = Storage(value.shape[0] if value.shape else 1, math.prod(value.shape[1:]))
        if layout == BANDED:
            storage.bands = Bands.of(value.shape[1], (value.shape[2], value.shape[3]), self.sharing)
        storage.buffers[layout] = Buffer(
            storage.size(layout), bands=storage.bands.count if storage.bands else 1
        )
        self.storage[value.name] = storage
        return storage, storage.buffers[layout]

    def native(self, name: str, emit: Emit, *buffers: Buffer) -> None:
        self.operations.append(Native(name, buffers, emit))

    def need(self, name: str, layout: str) -> Buffer:
        """The value in this layout, converted on first use. Nothing is converted to bands."""
        storage = self.storage[name]
        if layout in storage.buffers:
            return storage.buffers[layout]
        assert layout != BANDED
        if layout == LANED:
            source = self.need(name, PLANAR)
            target = Buffer(storage.size(LANED))
            self._transpose(f"{name}:lanes", source, target, storage, to_lanes=True)
        elif BANDED in storage.buffers:
            target = Buffer(storage.size(PLANAR))
            self._join(f"{name}:planar", storage, target)
        elif LANED in storage.buffers:
            target = Buffer(storage.size(PLANAR))
            self._transpose(f"{name}:planar", storage.buffers[LANED], target, storage, to_lanes=False)
        else:
            held = storage.tensor
            assert held is not None
            target = Buffer(storage.size(PLANAR))
            self.operations.append(Call(f"{name}:import", lambda t, held=held: t[held], {}, held, target))  # type: ignore[misc]
        storage.buffers[layout] = target
        return target

    def has(self, name: str, layout: str) -> bool:
        return layout in self.storage[name].buffers

    def _join(self, name: str, storage: Storage, target: Buffer) -> None:
        """Copies a map in bands to a whole one: windows of one element at every position."""
        images, bands = storage.images, storage.bands
        assert bands is not None
        self.native(
            name,
            lambda p, ids: p.pool(
                ids[0],
                ids[1],
                size=bands.size,
                out=bands.size,
                kernel=(1, 1),
                stride=(1, 1),
                padding=(0, 0),
                images=images,
                channels=bands.channels,
                bands=(bands.rows, 0),
                lanes=False,
                maximum=True,
            ),
            storage.buffers[BANDED],
            target,
        )

    def _transpose(
        self, name: str, source: Buffer, target: Buffer, storage: Storage, *, to_lanes: bool
    ) -> None:
        images, floats = storage.images, storage.floats
        self.native(
            name,
            lambda p, ids: p.transpose(ids[0], ids[1], images=images, n=floats, to_lanes=to_lanes),
            source,
            target,
        )


@dataclass
class Built:
    """What a tape became: a native program and the order of segments and calls."""

    program: _core.Program
    segments: list[tuple[int, int] | Call]  # native step range, or a call
    ids: dict[Buffer, int]
    names: list[str]  # of native steps


def build(tape: Tape) -> Built:
    """Place every buffer by its lifetime and emit the native steps."""
    looped, turns = tape.loop or (0, 1)
    slots = _slots(tape, looped)
    shared = place([slot for buffer, slot in slots.items() if buffer.bands == 1])
    banded = place([slot for buffer, slot in slots.items() if buffer.bands > 1])
    apart = -(-banded // ALIGNMENT) * ALIGNMENT  # the bands of one thread from those of the next
    first_band = -(-shared // ALIGNMENT) * ALIGNMENT
    program = _core.Program(first_band + tape.sharing * apart if banded else shared)
    ids: dict[Buffer, int] = {}

    def identify(buffer: Buffer) -> int:
        if buffer not in ids:
            place_of = buffer.whole or buffer
            offset = slots[place_of].offset if place_of.kind == "arena" else 0
            stride = buffer.size if buffer.turns > 1 else 0
            if buffer.bands > 1:
                band = tape.sharing // buffer.bands * apart
                ids[buffer] = program.buffer(
                    place_of.kind, first_band + offset, buffer.size, bands=buffer.bands, band=band
                )
                return ids[buffer]
            ids[buffer] = program.buffer(place_of.kind, offset, buffer.size, stride, buffer.turns)
        return ids[buffer]

    segments: list[tuple[int, int] | Call] = []
    names: list[str] = []
    for position, operation in enumerate(tape.operations):
        if position == looped and looped > 0:
            program.loop(0, turns)
        if isinstance(operation, Call):
            for buffer, _ in operation.load.values():
                identify(buffer)
            if operation.store is not None:
                identify(operation.store)
            segments.append(operation)
            continue
        first = len(program)
        operation.emit(program, [identify(buffer) for buffer in operation.buffers])
        names += [operation.name] * (len(program) - first)
        previous = segments[-1] if segments else None
        if isinstance(previous, tuple):
            segments[-1] = (previous[0], len(program))
        else:
            segments.append((first, len(program)))
    if looped == len(tape.operations) and looped > 0:
        program.loop(0, turns)
    return Built(program, segments, ids, names)


def _slots(tape: Tape, looped: int) -> dict[Buffer, Slot]:
    """Lifetimes of the arena's buffers; what outlives the loop lives from its begin on."""
    slots: dict[Buffer, Slot] = {}
    for position, operation in enumerate(tape.operations):
        if isinstance(operation, Native):
            used: list[Buffer] = list(operation.buffers)
        else:
            used = [buffer for buffer, _ in operation.load.values()]
            if operation.store is not None:
                used.append(operation.store)
        for buffer in used:
            owner = buffer.whole or buffer
            if owner.kind == "arena":
                first, last = (0, looped - 1) if buffer.whole is not None else (position, position)
                slot = slots.setdefault(owner, Slot(owner.size, first, last))
                slot.last = max(slot.last, position, last)
    return slots


def detached(result: Tensor, values: Sequence[Tensor]) -> Tensor:
    """``result``, copied if it shares memory with one of ``values``, which the arena will use again."""
    if result.device.type != "cpu":
        return result
    memory = result.untyped_storage().data_ptr()
    if any(memory == value.untyped_storage().data_ptr() for value in values):
        return result.clone(memory_format=torch.contiguous_format)
    return result
