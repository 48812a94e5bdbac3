"""Fully connected layers that gather their input, in both ways of reading it, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from finepruning import _core

WAYS = [(row["isa"], row["way"]) for row in _core.kernels() if row["name"] == "gather_rows"]


def stored(value: NDArray[np.float32], values: str) -> tuple[NDArray[np.generic], NDArray[np.float32]]:
    """(values as the kernel takes them, what they then are)."""
    if values == "float16":
        half = value.astype(np.float16)
        return half.view(np.uint16), half.astype(np.float32)
    if values == "bfloat16":
        upper = (value.view(np.uint32) >> 16).astype(np.uint16)
        return upper, (upper.astype(np.uint32) << 16).view(np.float32)
    return value, value


@pytest.mark.parametrize("values", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("isa", "way"), WAYS)
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 200), min_size=1, max_size=9),
    columns=st.sampled_from([200, 777, 9217, 40_000]),
    seed=st.integers(0, 2**16),
)
def test_both_ways_equal_the_reference(
    isa: str, way: str, values: str, lengths: list[int], columns: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    column = [np.sort(rng.choice(columns, n, replace=False)) for n in lengths]
    rowptr = np.cumsum([0, *lengths]).astype(np.int32)
    value, rounded = stored(rng.standard_normal(rowptr[-1]).astype(np.float32), values)
    x, bias = rng.standard_normal(columns).astype(np.float32), np.linspace(-1, 1, len(lengths), dtype="f4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINEPRUNING_ISA", isa)
        program = _core.Program(16)
        source = program.buffer("input", 0, columns)
        target = program.buffer("output", 0, len(lengths))
        program.gather_linear(
            source,
            target,
            value,
            np.concatenate([*column, []]).astype(np.int32),
            rowptr,
            columns=columns,
            bias=bias,
            activation="relu",
            images=1,
            values=values,
            way=way,
        )
    y = np.full(len(lengths), np.nan, np.float32)
    program.run(program.acquire(2), 0, 1, x, y)
    for r, at in enumerate(column):
        terms = rounded[rowptr[r] : rowptr[r + 1]].astype(np.float64) * x[at]
        scale = 1 + abs(terms).sum()
        assert abs(y[r] - max(0.0, bias[r] + terms.sum())) <= 1e-6 * scale


def test_ways_that_do_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEPRUNING_ISA", "portable")
    program = _core.Program(32)
    source, target = program.buffer("arena", 0, 1), program.buffer("arena", 16, 1)
    one = (np.ones(1, np.float32), np.zeros(1, np.int32), np.array([0, 1], np.int32))
    for way, message in (("instructions", "no gather instructions"), ("telepathy", "telepathy")):
        with pytest.raises(ValueError, match=message):
            program.gather_linear(source, target, *one, columns=1, images=1, way=way)
