"""The bindings refuse what does not fit, with ValueError (ArgumentError is one), before a kernel runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finepruning import _core
from finepruning.engine.cpu_weights import csr_arrays
from finepruning.errors import ArgumentError
from finepruning.sparse.csr import CSR


def packed(**changes: Any) -> _core.PackedConv:
    arguments: dict[str, Any] = {
        "channels": 2,
        "size": (4, 4),
        "outputs": 3,
        "kernel": (3, 3),
        "stride": (1, 1),
        "padding": (1, 1),
        "dilation": (1, 1),
        "groups": 1,
        "mapping": "planar",
    }
    value = changes.pop("value", np.ones(3, np.float32))
    column = changes.pop("column", np.array([0, 5, 17], np.int32))
    rowptr = changes.pop("rowptr", np.array([0, 1, 2, 3], np.int32))
    return _core.PackedConv(value, column, rowptr, **(arguments | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"column": np.array([0, 5, 18], np.int32)},
        {"column": np.array([0, -1, 3], np.int32)},
        {"column": np.array([0, 5], np.int32)},
        {"rowptr": np.array([0, 2, 1, 3], np.int32)},
        {"rowptr": np.array([0, 1, 2, 4], np.int32)},
        {"rowptr": np.array([1, 1, 2, 3], np.int32)},
        {"rowptr": np.array([0, 1, 3], np.int32)},
        {"channels": 0},
        {"groups": 2},
        {"stride": (0, 1)},
        {"padding": (-1, 0)},
        {"kernel": (7, 7)},
        {"mapping": "diagonal"},
        {"threads": 0},
    ],
    ids=str,
)
def test_weights_that_do_not_fit(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        packed(**changes)


def test_buffers_must_lie_in_the_arena() -> None:
    program = _core.Program(1024)
    for offset, size in ((0, 1025), (1024, 16), (8, 16), (-16, 16), (0, -1)):
        with pytest.raises(ValueError, match=r"buffer|arena|offset"):
            program.buffer("arena", offset, size)


def test_steps_must_fit_their_buffers() -> None:
    program = _core.Program(4096)
    source, target = program.buffer("arena", 0, 32), program.buffer("arena", 1024, 47)
    with pytest.raises(ValueError, match="fit"):
        program.conv(source, target, packed(), images=1)
    with pytest.raises(ValueError, match="buffer"):
        program.conv(source, 9, packed(), images=1)
    with pytest.raises(ValueError, match="fit"):
        program.elementwise(source, -1, target, n=40)
    with pytest.raises(ValueError, match="bias"):
        program.conv(source, target, packed(), bias=np.zeros(2, np.float32), images=1)
    assert len(program) == 0


def test_run_checks_input_output_and_steps() -> None:
    program = _core.Program(16)
    program.elementwise(program.buffer("input", 0, 8), -1, program.buffer("output", 0, 8), n=8)
    context = program.acquire(2)
    x, y = np.arange(8, dtype=np.float32), np.full(8, np.nan, np.float32)
    with pytest.raises(ValueError, match="input"):
        program.run(context, 0, 1, x[:7], y)
    with pytest.raises(ValueError, match="output"):
        program.run(context, 0, 1, x, y[:7])
    with pytest.raises(ValueError, match="steps"):
        program.run(context, 0, 2, x, y)
    program.run(context, 0, 1, x, y)
    assert (x == y).all()


def test_unknown_instruction_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEPRUNING_ISA", "sse9")
    with pytest.raises(ArgumentError, match=r"FINEPRUNING_ISA=sse9 .* use avx512"):
        _core.isa()


@pytest.mark.skipif(
    all(kernel["isa"] != "avx512" for kernel in _core.kernels()), reason="needs a processor with AVX-512"
)
def test_split_vectors_hold_half_as_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINEPRUNING_ISA", raising=False)
    # A guess at what this machine is would be wrong on another; both are right.
    assert (_core.isa(), _core.lanes()) in {("avx512", 16), ("avx512-split", 8)}
    monkeypatch.setenv("FINEPRUNING_ISA", "avx512-split")
    assert (_core.isa(), _core.map_isa()) == ("avx512-split", "avx512")
    assert (_core.lanes(), _core.map_lanes()) == (8, 16)
    monkeypatch.setenv("FINEPRUNING_ISA", "avx512vl")
    assert (_core.isa(), _core.map_isa(), _core.lanes(), _core.map_lanes()) == ("avx512vl",) * 2 + (8, 8)


def test_every_process_chooses_the_same_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors raise their voltage only after some work with whole vectors; a probe must wait for that."""
    monkeypatch.delenv("FINEPRUNING_ISA", raising=False)
    program = f"import sys; sys.path.insert(0, {str(Path(_core.__file__).parent)!r}); import _core; "
    command = [sys.executable, "-c", program + "print(_core.isa(), _core.lanes())"]
    assert {subprocess.check_output(command, text=True) for _ in range(20)} == {
        f"{_core.isa()} {_core.lanes()}\n"
    }


@pytest.mark.parametrize("isa", sorted({kernel["isa"] for kernel in _core.kernels()}))
@pytest.mark.parametrize("images", [1, 3, 4, 7, 8, 15, 16, 17, 33])
@pytest.mark.parametrize("n", [1, 5, 1030])
def test_transposing_there_and_back(isa: str, images: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEPRUNING_ISA", isa)
    lanes = _core.lanes()
    blocks = -(-images // lanes)
    program = _core.Program(blocks * lanes * n)
    x = np.random.default_rng(0).standard_normal(images * n).astype(np.float32)
    middle = program.buffer("arena", 0, blocks * lanes * n)
    program.transpose(program.buffer("input", 0, images * n), middle, images=images, n=n, to_lanes=True)
    program.transpose(middle, program.buffer("output", 0, images * n), images=images, n=n, to_lanes=False)
    context = program.acquire(2)
    y = np.full_like(x, np.nan)
    program.run(context, 0, 2, x, y)
    assert (x == y).all()
    view = program.view(context, middle).reshape(blocks, n, lanes)
    assert (view[-1, :, (images - 1) % lanes + 1 :] == 0).all()


@pytest.mark.parametrize("to_lanes", [True, False])
def test_images_side_by_side_are_not_taken_from_the_caller(to_lanes: bool) -> None:
    """Kernels read and write them as aligned vectors; a NumPy array may begin anywhere."""
    floats = _core.lanes() * 5
    program = _core.Program(floats)
    inside = program.buffer("arena", 0, floats)
    outside = program.buffer("output" if to_lanes else "input", 0, floats)
    source, target = (inside, outside) if to_lanes else (outside, inside)
    with pytest.raises(ValueError, match="side by side"):
        program.transpose(source, target, images=_core.lanes(), n=5, to_lanes=to_lanes)
    sizes = {"size": (1, 5), "out": (1, 5), "kernel": (1, 1), "stride": (1, 1), "padding": (0, 0)}
    with pytest.raises(ValueError, match="side by side"):
        program.pool(source, target, images=1, channels=1, lanes=True, maximum=True, **sizes)
    with pytest.raises(ValueError, match="side by side"):
        program.broadcast(source, inside, target, images=1, channels=1, n=5, lanes=True, op="add")
    weight = csr_arrays(CSR.from_dense(torch.ones(1, 1, 1, 1)))
    window = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    shape = {"channels": 1, "size": (1, 5), "outputs": 1, "groups": 1, **window}
    packed = _core.PackedConv(**weight, mapping="lanes", **shape)
    with pytest.raises(ValueError, match="side by side"):
        program.conv(source, target, packed, images=1)


def test_kernels_cover_every_instruction_set() -> None:
    table = _core.kernels()
    assert {row["isa"] for row in table} >= {"portable"}
    for isa in {row["isa"] for row in table}:
        assert {"sparse_tile", "gather_rows", "pool", "pool_lanes"} <= {
            row["name"] for row in table if row["isa"] == isa
        }


def test_machine_limits_are_positive() -> None:
    assert _core.fma_peak(1) > 0
    with pytest.raises(ValueError, match="threads"):
        _core.fma_peak(0)


def test_a_context_of_another_program_is_refused() -> None:
    small, large = _core.Program(16), _core.Program(1 << 16)
    large.elementwise(large.buffer("arena", 0, 65536), -1, large.buffer("arena", 0, 65536), n=65536)
    nothing = np.zeros(0, np.float32)
    with pytest.raises(ValueError, match="context"):
        large.run(small.acquire(1), 0, 1, nothing, nothing)


@pytest.mark.parametrize("mapping", ["planar", "lanes"])
def test_tiles_chosen_for_threads_give_the_same_result(mapping: str) -> None:
    """14x14 positions: with one tile every thread would pack all the input for its part of the outputs."""
    random = np.random.default_rng(0)
    row, column = np.nonzero(random.random((256, 1024)) < 0.05)
    weights = {
        "value": random.standard_normal(len(column)).astype(np.float32),
        "column": column.astype(np.int32),
        "rowptr": np.searchsorted(row, np.arange(257)).astype(np.int32),
    }
    shape = {"channels": 1024, "size": (14, 14), "outputs": 256, "kernel": (1, 1), "padding": (0, 0)}
    images = _core.lanes() if mapping == "lanes" else 1
    x = random.standard_normal(images * 1024 * 196).astype(np.float32)
    found, tiles = [], set()
    for threads in (1, 2, 3, 8):
        conv = packed(**weights, **shape, mapping=mapping, threads=threads)
        program = _core.Program(x.size + images * 256 * 196)
        source = program.buffer("arena", 0, x.size)
        target = program.buffer("arena", x.size, images * 256 * 196)
        program.conv(source, target, conv, images=1)
        context = program.acquire(threads)
        program.view(context, source)[:] = x
        program.view(context, target)[:] = np.nan
        program.run(context, 0, len(program), x, x)
        found.append(program.view(context, target).copy())
        tiles.add(conv.tile)
    assert len(tiles) > 1 or mapping == "lanes"  # whose tiles are many
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-4, atol=1e-4)
