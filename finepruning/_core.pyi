"""Sparse convolution and fully connected kernels for the CPU.

Every function and method raises ValueError when sizes do not fit; none of them trusts its arguments.
"""

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

class Kernel(TypedDict):
    name: str
    isa: str
    tile: tuple[int, int] | None
    way: str | None  # in which "gather_rows" reads its input

class PackedConv:
    """Weights of a convolution, repacked for one geometry and mapping: "lanes", "rows", "flat", "matrix", or
    "planar" (rows or flat, whichever the cost model prefers).

    ``matrix_blocks``: vectors of rows that may share one reading of the weights under "matrix". ``pooled``:
    the output is max-pooled over 2x2 windows ("lanes" and "rows"; "planar" may leave it undone). ``tile``
    (rows, columns in vectors) and ``block_units`` force what the cost model would choose; zeros leave it the
    choice. ``threads``: that share an image (or a vector of images in lanes), which the choice heeds; any
    number may run the result. ``source_band``: rows of the bands that the input lies in, zero if it lies
    whole; ``banded``: the output goes to the `bands` of those threads (both for "planar", "rows" and "flat"
    only). ``values``: "float32", "bfloat16" or "float16", the latter two as their bits in an array of uint16;
    they are kept in 16 bits.
    """

    def __init__(
        self,
        value: NDArray[np.float32] | NDArray[np.uint16],
        column: NDArray[np.int32],
        rowptr: NDArray[np.int32],
        *,
        channels: int,
        size: tuple[int, int],
        outputs: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        mapping: str,
        matrix_blocks: int = 1,
        pooled: bool = False,
        tile: tuple[int, int] = (0, 0),
        block_units: int = 0,
        values: str = "float32",
        threads: int = 1,
        source_band: int = 0,
        banded: bool = False,
    ) -> None: ...
    @property
    def kernel(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def cost(self) -> float:
        """Modelled cycles of one core for one image, or for a vector of images in lanes."""

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of the register tile in vectors."""

    @property
    def blocks(self) -> int:
        """Blocks of input that are packed one after the other."""

    @property
    def pooled(self) -> bool:
        """Whether it pools its output."""

class Context:
    """Memory of one call in flight."""

    @property
    def nbytes(self) -> int: ...

class Program:
    """Native steps over one arena. Sizes and offsets count floats."""

    def __init__(self, arena_floats: int) -> None: ...
    def buffer(
        self,
        kind: str,
        offset: int,
        size: int,
        stride: int = 0,
        turns: int = 1,
        bands: int = 1,
        band: int = 0,
    ) -> int:
        """A part of the arena, or of the caller's "input" or "output"; returns its id.

        With a ``stride`` it moves on by so many floats in every one of ``turns`` turns of its loop. It may
        consist of ``bands`` of ``size`` floats each, from one to the next of which it is ``band`` floats.
        """

    def loop(self, first: int, turns: int) -> None:
        """Run the steps added from step ``first`` on, up to now, ``turns`` times over."""

    def conv(
        self,
        source: int,
        target: int,
        packed: PackedConv,
        *,
        bias: NDArray[np.float32] | None = None,
        residual: int = -1,
        activation: str = "none",
        images: int,
    ) -> None: ...
    def gather_linear(
        self,
        source: int,
        target: int,
        value: NDArray[np.float32] | NDArray[np.uint16],
        column: NDArray[np.int32],
        rowptr: NDArray[np.int32],
        *,
        columns: int,
        bias: NDArray[np.float32] | None = None,
        residual: int = -1,
        activation: str = "none",
        images: int,
        values: str = "float32",
        way: str = "fastest",
    ) -> None: ...
    def pool(
        self,
        source: int,
        target: int,
        *,
        size: tuple[int, int],
        out: tuple[int, int],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int] = (1, 1),
        images: int,
        channels: int,
        bands: tuple[int, int] = (0, 0),
        lanes: bool,
        maximum: bool,
        count_include_pad: bool = True,
        divisor: int = 0,
    ) -> None:
        """``bands``: rows of the bands of the input and of the output; zero for what lies whole."""

    def elementwise(
        self, a: int, b: int, target: int, *, n: int, op: str = "add", activation: str = "none"
    ) -> None: ...
    def broadcast(
        self,
        a: int,
        b: int,
        target: int,
        *,
        images: int,
        channels: int,
        n: int,
        lanes: bool,
        op: str,
        activation: str = "none",
    ) -> None: ...
    def copy(
        self, source: int, target: int, *, images: int, n: int, target_offset: int, target_stride: int
    ) -> None: ...
    def transpose(self, source: int, target: int, *, images: int, n: int, to_lanes: bool) -> None: ...
    def __len__(self) -> int: ...
    def context_bytes(self, threads: int) -> int: ...
    def acquire(self, threads: int) -> Context: ...
    def release(self, context: Context) -> None: ...
    def run(
        self,
        context: Context,
        first: int,
        last: int,
        input: NDArray[np.float32],
        output: NDArray[np.float32],
    ) -> None:
        """Run steps [first, last) without the GIL; ``output`` is written in place."""

    def view(self, context: Context, buffer: int) -> NDArray[np.float32]:
        """The floats of an arena buffer, sharing memory: [size], or [bands, size] where it has several."""

def bands(size: tuple[int, int], *, threads: int) -> tuple[int, int, int]:
    """How a map that so many threads share is cut: rows of a band, bands, and floats of a plane of a band.

    A band lies [channel][plane], and planes begin with a cache line.
    """

def kernels() -> list[Kernel]:
    """Every kernel that this build has and this machine can run."""

def lanes() -> int:
    """Floats of a vector of images side by side."""

def map_lanes() -> int:
    """Floats of a vector of neighbours of one map: as many, or more where arithmetic splits wide vectors."""

def isa() -> str:
    """The kernels in use: the best of this machine, or what FINEPRUNING_ISA names.

    "avx512-split" is "avx512" for maps one by one and "avx512vl" for images side by side.
    """

def map_isa() -> str:
    """Those in use for maps one by one."""

def fma_peak(threads: int) -> float:
    """Measured float32 multiply-accumulates per second of ``threads`` threads, in 1e9."""

def read_bandwidth(threads: int) -> float:
    """Measured bytes per second that ``threads`` threads read from memory, in 1e9."""

def modelled_cycles(
    value: NDArray[np.float32] | NDArray[np.uint16],
    column: NDArray[np.int32],
    rowptr: NDArray[np.int32],
    *,
    channels: int,
    size: tuple[int, int],
    outputs: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    mapping: str,
    values: str = "float32",
) -> float:
    """`PackedConv.cost` under "planar" or "lanes", without packing the weights."""
