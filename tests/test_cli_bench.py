"""`finepruning bench` and `finepruning inspect` on small models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finepruning import SparseModel
from finepruning.cli import run

Captured = pytest.CaptureFixture[str]
QUICK = ["--batch", "1", "--threads", "1", "--peers", "torch", "--no-memory", "--seconds", "0.001"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run with a small model and the part of its report that is shown."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    with torch.no_grad():
        module[3].weight[:, ::2] = 0.0
    path = tmp_path / "runs" / "small"
    example = torch.zeros(1, 3, 8, 8)
    model = SparseModel.from_dense(module, example, classes=["a", "b", "c", "d"], provenance={"seed": 5})
    model.save_pretrained(path / "model")
    report = {"model": "small", "dense_accuracy": 0.97, "accuracy": 0.96, "density": 0.6}
    report |= {"bytes_dense": 6000, "bytes_sparse": 3000}
    (path / "report.json").write_text(json.dumps(report))
    (path / "config.yaml").write_text("seed: 0\n")
    return path


def fails(capsys: Captured, *arguments: object) -> str:
    assert run([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_bench_of_a_run_ends_with_the_whole_story(run_dir: Path, capsys: Captured) -> None:
    output = run_dir / "bench.json"
    assert run(["bench", str(run_dir), *QUICK, "--layers", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    for expected in (
        "97.0 %",
        "96.0 %",
        "-1.0 points",
        "0.6000",
        "2.0x smaller",
        "latency, batch 1",
        "report.html",
    ):
        assert expected in text
    assert str(run_dir / "model") in text
    result: dict[str, Any] = json.loads(output.read_text())
    assert [row["peer"] for row in result["rows"]] == ["finepruning", "torch"]
    assert result["network"] == "small"
    assert any(row["op"] == "linear" for row in result["layers"])


def test_bench_of_a_model_directory(run_dir: Path, capsys: Captured) -> None:
    assert run(["bench", str(run_dir / "model"), *QUICK]) == 0
    assert "finepruning" in capsys.readouterr().out


def test_bench_of_a_network_pruned_on_the_spot(capsys: Captured) -> None:
    assert run(["bench", "--model", "squeezenet1_1", "--density", "0.2", *QUICK]) == 0
    text = capsys.readouterr().out
    assert "squeezenet1_1" in text
    assert "density 0.20" in text


def test_bench_of_what_cannot_be(run_dir: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_dir)
    assert "--model NAME" in fails(capsys, "bench")
    assert "nowhere" in fails(capsys, "bench", run_dir / "nowhere")
    assert "not both" in fails(capsys, "bench", run_dir, "--model", "alexnet")
    assert "--density" in fails(capsys, "bench", run_dir, "--density", "0.1")
    assert "--density" in fails(capsys, "bench", "--model", "alexnet", "--density", "1.5", *QUICK)
    assert "resnet50" in fails(capsys, "bench", "--model", "resnet5O", *QUICK)
    assert "--batch" in fails(capsys, "bench", run_dir, "--batch", "1,x")
    assert "torch_channels_last" in fails(capsys, "bench", run_dir, "--peers", "tensorrt")
    assert "--output" in fails(capsys, "bench", run_dir, "--output", run_dir / "no" / "file.json")
    (run_dir / "model" / "config.json").unlink()
    assert "--resume" in fails(capsys, "bench", run_dir)


def test_bench_of_a_damaged_model(run_dir: Path, capsys: Captured) -> None:
    file = run_dir / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert "model.safetensors" in fails(capsys, "bench", run_dir, *QUICK)


def test_inspect_lists_every_layer_and_the_facts(run_dir: Path, capsys: Captured) -> None:
    assert run(["inspect", str(run_dir)]) == 0
    text = capsys.readouterr().out
    for expected in (
        "conv2d",
        "8x3x3x3",
        "linear",
        "4x288",
        "0.5000",
        "CSR f32+u16",
        "total",
        "4: a, b, c, d",
        "seed 5",
    ):
        assert expected in text


def test_inspect_as_json(run_dir: Path, capsys: Captured) -> None:
    assert run(["inspect", str(run_dir / "model"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [layer["nnz"] for layer in content["layers"]] == [216, 4 * 144]
    assert content["totals"]["size"] == 216 + 4 * 288
    assert content["classes"] == ["a", "b", "c", "d"]
    files = (run_dir / "model").iterdir()
    assert content["file_bytes"] == sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("damage", ["truncated", "altered", "foreign", "empty"])
def test_inspect_of_a_bad_model(run_dir: Path, capsys: Captured, damage: str) -> None:
    weights, config = run_dir / "model" / "model.safetensors", run_dir / "model" / "config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "altered":
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
    elif damage == "foreign":
        config.write_text('{"architectures": ["Bert"]}')
    else:
        weights.unlink()
    fails(capsys, "inspect", run_dir)


def test_output_into_a_closed_pipe_is_quiet(run_dir: Path) -> None:
    import subprocess
    import sys

    command = f"{sys.executable} -m finepruning inspect {run_dir} | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert result.stderr == ""
