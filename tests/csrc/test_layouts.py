"""Every layout of packed input with every register tile, whatever the cost model would choose."""

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
        )
        found = run(packed, x, expected, lanes=mapping == "lanes")
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def run(packed: _core.PackedConv, x: torch.Tensor, expected: torch.Tensor, *, lanes: bool) -> torch.Tensor:
    """The convolution's result, from an input and into a result in NaN, whose margins must stay."""
    line = 16
    source_size, target_size = (-(-n.numel() // line) * line for n in (x, expected))
    program = _core.Program(source_size + target_size + 2 * MARGIN)
    source = program.buffer("arena", MARGIN, source_size)
    target = program.buffer("arena", MARGIN + source_size, target_size)
    whole = program.buffer("arena", 0, source_size + target_size + 2 * MARGIN)
    program.conv(source, target, packed, images=1)
    context = program.acquire(1)
    memory = program.view(context, whole)
    memory[:] = np.nan
    flat = x.flatten(1).T if lanes else x
    memory[MARGIN : MARGIN + x.numel()] = flat.reshape(-1).numpy()
    nothing = np.zeros(0, np.float32)
    program.run(context, 0, len(program), nothing, nothing)
    at = MARGIN + source_size
    result = torch.from_numpy(memory[at : at + expected.numel()].copy())
    assert np.isnan(memory[at + expected.numel() :]).all()
    assert np.isnan(memory[:MARGIN]).all()
    if not lanes:
        return result.reshape(expected.shape)
    return result.reshape(expected[0].numel(), -1).T.reshape(expected.shape)
