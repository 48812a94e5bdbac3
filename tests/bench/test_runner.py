from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from finepruning.bench import BenchOptions, OutputMismatchError, bench, memory, runner
from finepruning.bench.layers import layer_rows
from finepruning.cli import run
from finepruning.engine import SparseModel, cpu
from finepruning.engine.cpu_schedule import Schedule
from finepruning.errors import ArgumentError, DeviceError
from finepruning.sparse.storage import load

QUICK = BenchOptions(batches=(1, 3), threads=1, peers=("torch",), memory=False, seconds=0.001)


def test_rows_hold_what_a_reader_needs(model_dir: Path) -> None:
    result = bench(model_dir, "small", QUICK)
    assert [(row["batch"], row["peer"]) for row in result["rows"]] == [
        (1, "finepruning"),
        (1, "torch"),
        (3, "finepruning"),
        (3, "torch"),
    ]
    for row in result["rows"]:
        assert row["network"] == "small"
        assert 0.2 < row["density"] < 0.35  # half of the first convolution is kept
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["relative_error"] < 1e-4
        assert row["weight_bytes"] > 0
    ours, dense = result["rows"][:2]
    assert ours["speedup"] == dense["median_ms"] / ours["median_ms"]
    assert ours["floor_ms"] > 0
    assert {"date", "commit", "machine", "versions", "limits"} <= set(result)
    assert result["machine"]["threads"] == 1
    json.dumps(result)


def test_the_number_of_threads_is_put_back(model_dir: Path) -> None:
    before = torch.get_num_threads()
    bench(
        model_dir,
        "small",
        BenchOptions(batches=(1,), threads=before + 1, peers=(), memory=False, seconds=0.001),
    )
    assert torch.get_num_threads() == before


def test_no_speed_where_outputs_differ(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = runner.SparseModel.forward
    monkeypatch.setattr(runner.SparseModel, "forward", lambda self, x: forward(self, x) * 1.01)
    with pytest.raises(OutputMismatchError, match="no speed is reported"):
        bench(model_dir, "small", QUICK)


def test_a_peer_that_differs_is_named_and_not_timed(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = runner.Peer("torch", lambda twin, threads: lambda x: twin.module(x) + 1)
    monkeypatch.setattr(runner, "choose", lambda *_: [wrong])
    row = bench(model_dir, "small", QUICK)["rows"][1]
    assert row["median_ms"] is None
    assert "differ" in row["skipped"]


def test_layers_are_timed_next_to_dense_ones(model_dir: Path) -> None:
    rows = layer_rows(load(model_dir), 2, runner.floor.MachineLimits(1e11, 1e10), turns=2)
    weighted = [row for row in rows if row["nnz"] is not None]
    assert [row["op"] for row in weighted] == ["conv2d", "conv2d", "linear"]
    for row in weighted:
        assert row["ms"] > 0
        assert row["dense_ms"] > 0
        assert row["floor_ms"] > 0
        assert row["kernel"]


def test_layers_are_those_of_the_plan_that_runs(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "schedule", lambda plan, threads: Schedule(1, 2))
    rows = layer_rows(load(model_dir), 16, None, turns=1)
    report = SparseModel.from_pretrained(model_dir).plan(16)
    assert [(row["name"], row["kernel"]) for row in rows] == [(row.name, row.kernel) for row in report]
    looped, after = (row["kernel"] for row in rows if row["op"] == "conv2d")
    assert "lanes" not in looped
    assert "lanes" in after


def test_layers_of_16_bit_weights_have_the_floor_of_their_bytes(model_dir: Path) -> None:
    options = BenchOptions(
        batches=(1,), threads=1, peers=(), memory=False, seconds=0.001, layers=True, dtype="bfloat16"
    )
    result = bench(model_dir, "small", options)
    linear = next(row for row in result["layers"] if row["op"] == "linear")
    limits = result["limits"]
    read_ms = 4e3 * linear["nnz"] / (1e9 * limits["gbytes_per_second"])
    compute_ms = 1e3 * linear["nnz"] / (1e9 * limits["gmacs_per_second"])
    assert linear["floor_ms"] == pytest.approx(max(read_ms, compute_ms))
    assert linear["dense_ms"] > 0


def test_memory_counts_at_least_the_weights(model_dir: Path) -> None:
    if not memory.available():
        pytest.skip("this system does not report the peak resident set")
    request = memory.MemoryRequest(str(model_dir), memory.OURS, (1, 2), 1, "float32")
    (peaks,) = memory.peak_bytes([request])
    assert peaks is not None
    assert set(peaks) == {1, 2}
    assert all(0 < value < 500e6 for value in peaks.values())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (BenchOptions(batches=()), "--batch"),
        (BenchOptions(batches=(0,)), "--batch"),
        (BenchOptions(threads=0), "--threads"),
        (BenchOptions(dtype="int8"), "--dtype"),
        (BenchOptions(device="tpu"), "--device"),
        (BenchOptions(seconds=0.0), "--seconds"),
        (BenchOptions(peers=("nope",)), "--peers"),
    ],
)
def test_options_that_cannot_be(options: BenchOptions, named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        runner.check(options)


def test_cuda_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="no CUDA device"):
        runner.check(BenchOptions(device="cuda"))
    assert run(["bench", "--model", "alexnet", "--device", "cuda"]) == 2
    assert (
        capsys.readouterr().err
        == "error: --device cuda: PyTorch finds no CUDA device here; use --device cpu\n"
    )
