"""Every layout of packed input, of maps whole and in bands, with every register tile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from finepruning import _core
from finepruning.engine.cpu_weights import csr_arrays
from finepruning.sparse.csr import CSR

ISAS = sorted({row["isa"] for row in _core.kernels()})
LINE = 16  # floats
MARGIN = 64  # floats around input and result that must stay as they were


def tiles(isa: str, mapping: str, pooled: bool) -> list[tuple[int, int]]:
    """Rows and columns that the mapping takes, from the table of kernels."""
    entries = [row["tile"] for row in _core.kernels() if row["isa"] == isa and row["tile"] is not None]
    if mapping == "flat":
        return [(rows, columns) for rows, columns in entries if rows == 1]
    if mapping == "rows":
        runs = [columns for rows, columns in entries if rows == 1]
        cut = {(n // w, w) for n in runs for w in range(1, n + 1) if n % w == 0}
        return sorted((rows, columns) for rows, columns in cut if not pooled or rows % 2 == 0)
    return [tile for tile in entries if not pooled or (tile[0] % 2 == 0 and tile[1] % 2 == 0)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mapping", ["flat", "rows", "lanes"])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_every_layout_and_tile(isa: str, mapping: str, data: st.DataObject) -> None:
    draw = data.draw
    pooled = mapping != "flat" and draw(st.booleans())
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (4, 4), (3, 3), (2, 1), (1, 2)]))
    dilation = draw(st.sampled_from([1, 1, 2, 5]))
    # Often so that output and input are of one size, which has a way of its own.
    same = tuple(dilation * (k - 1) // 2 for k in kernel)
    padding = draw(st.sampled_from([same, (0, 0), (1, 3)]))
    most = draw(st.sampled_from([6, 20, 70]))
    size = [
        max(1, dilation * (k - 1) + 1 - 2 * p) + step * pooled + draw(st.integers(0, most))
        for k, p, step in zip(kernel, padding, stride, strict=True)
    ]
    groups, channels, outputs = (
        draw(st.sampled_from([1, 1, 2])),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 5)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINEPRUNING_ISA", isa)
        images = _core.lanes() if mapping == "lanes" else 1
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        weight = torch.randn(groups * outputs, channels, *kernel, generator=generator)
        weight *= torch.rand(weight.shape, generator=generator) < draw(st.sampled_from([0.1, 0.6, 1.0]))
        x = torch.randn(images, groups * channels, *size, generator=generator)
        expected = F.conv2d(x.double(), weight.double(), None, stride, padding, dilation, groups)
        if pooled:
            expected = F.max_pool2d(expected, 2)
        # Not all maps are large enough for bands; those of the input may be any.
        planar = mapping != "lanes"
        threads, banded = draw(st.integers(1, 5)), planar and draw(st.booleans())
        source_rows = draw(st.integers(0, size[0])) if planar else 0
        packed = _core.PackedConv(
            **csr_arrays(CSR.from_dense(weight)),
            channels=groups * channels,
            size=tuple(size),
            outputs=groups * outputs,
            kernel=kernel,
            stride=stride,
            padding=padding,
            dilation=(dilation, dilation),
            groups=groups,
            mapping=mapping,
            pooled=pooled,
            tile=draw(st.sampled_from(tiles(isa, mapping, pooled))),
            block_units=draw(st.sampled_from([0, 1, 7])),
            threads=threads,
            source_band=source_rows,
            banded=banded,
        )
        rows, _, _ = _core.bands(tuple(expected.shape[2:]), threads=threads if banded else 1)
        found = run(packed, x, expected, lanes=mapping == "lanes", rows=(source_rows or size[0], rows))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def run(
    packed: _core.PackedConv, x: torch.Tensor, expected: torch.Tensor, *, lanes: bool, rows: tuple[int, int]
) -> torch.Tensor:
    """The convolution's result, from an input and into a result in NaN; nothing else may be written.

    ``rows``: of the bands of input and result.
    """
    source = Lying(x, lanes, rows[0], MARGIN)
    target = Lying(expected, lanes, rows[1], source.end + MARGIN)
    program = _core.Program(target.end + MARGIN)
    whole = program.buffer("arena", 0, target.end + MARGIN)
    program.conv(source.buffer(program), target.buffer(program), packed, images=1)
    context = program.acquire(1)
    memory = torch.from_numpy(program.view(context, whole))
    memory[:] = torch.nan
    memory[source.at] = x
    nothing = np.zeros(0, np.float32)
    program.run(context, 0, len(program), nothing, nothing)
    result = memory[target.at].clone()
    memory[source.at], memory[target.at] = torch.nan, torch.nan
    assert memory.isnan().all()
    return result


class Lying:
    """Where a tensor's elements lie in memory: in bands some floats apart, from ``begin`` on."""

    def __init__(self, x: torch.Tensor, lanes: bool, rows: int, begin: int) -> None:
        images, channels, height, width = x.shape
        self.begin, self.bands = begin, -(-height // rows)
        pitch = height * width if self.bands == 1 else up(rows * width)
        self.size = channels * pitch * (images if lanes else 1)
        self.apart = up(self.size) + LINE
        self.end = begin + self.bands * self.apart
        image, channel, y, column = torch.meshgrid(*map(torch.arange, x.shape), indexing="ij")
        within = channel * pitch + y % rows * width + column
        self.at = begin + y // rows * self.apart + (within * images + image if lanes else within)

    def buffer(self, program: _core.Program) -> int:
        return program.buffer("arena", self.begin, self.size, bands=self.bands, band=self.apart)


def up(floats: int) -> int:
    """To whole cache lines."""
    return -(-floats // LINE) * LINE
