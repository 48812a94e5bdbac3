"""benchmarks/gpu.py from its first line to its file, with ordinary memory in place of a GPU."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from engine.fake_gpu import FakeGpu
from torch import nn

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("gpu", "gpu_networks", "gpu_checks"):
        sys.modules.pop(name, None)
    return importlib.import_module("gpu")


def test_dry_run_lists_every_row(gpu, capsys):
    assert gpu.main(["--dry-run"]) == 0
    out = capsys.readouterr().out
    for wanted in (
        *("alexnet", "vgg16", "resnet50", "b256", "torch_tf32", "torch_channels_last", "finepruning_tf32"),
        *("cusparse", "2:4", "linear 25088x4096", "0.02"),
    ):
        assert wanted in out
    assert "compile" not in out
    gpu.main(["--dry-run", "--compile"])
    assert "torch_compile_tf32" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(gpu, capsys):
    assert gpu.main(["--no-build"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def _tiny(name, classes, weights, seed):
    if name == "vgg16":
        raise RuntimeError("no memory for this one")
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Flatten(), nn.Linear(128, 24)
    )
    return SimpleNamespace(module=network, image_size=8, name=name)


@pytest.fixture
def faked(gpu, monkeypatch):
    """The script on a machine that seems to have a GPU, with tiny networks and one failing check."""
    if torch.cuda.is_available():
        pytest.skip("stands in for a GPU where there is none")
    FakeGpu(monkeypatch, replays=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Fake GPU")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 1)
    monkeypatch.setattr(gpu, "LINEAR_LAYERS", ((16, 64),))
    checks, networks = (importlib.import_module(name) for name in ("gpu_checks", "gpu_networks"))
    monkeypatch.setattr(networks, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(networks.models, "create", _tiny)
    monkeypatch.setattr(networks.cuda, "FLUSH_BYTES", 64)

    def wrong():
        raise AssertionError("off by one")

    monkeypatch.setattr(checks, "all_checks", lambda: iter([("good", lambda: None), ("bad", wrong)]))
    return gpu


def _run(gpu, path, *arguments):
    code = gpu.main(["--no-build", "--out", str(path), "--batches", "1", "--dtypes", "float32", *arguments])
    return code, json.loads(path.read_text())


def test_rows_are_stored_with_their_numbers_and_failures_with_their_reason(faked, tmp_path, capsys):
    networks = ("--networks", "alexnet", "vgg16", "--densities", "0.2", "0.1")
    code, result = _run(faked, tmp_path / "folder" / "out.json", *networks)
    assert code == 1
    assert result["failed_checks"] == ["bad: AssertionError: off by one"]
    assert result["device"] == "Fake GPU"
    assert {"torch", "triton", "cuda", "cudnn", "python"} == set(result["versions"])
    rows = {(row["network"], row["density"], row["peer"]): row for row in result["rows"]}
    for density, peer in ((0.2, "finepruning"), (0.1, "finepruning"), (0.2, "torch"), (0.2, "torch_tf32")):
        row = rows["alexnet", density, peer]
        assert row["median_ms"] == row["cold_ms"] == 1.0
        assert row["peak_bytes"] > 0
        assert row["weight_bytes"] > 0
    assert rows["alexnet", 0.1, "finepruning"]["weight_bytes"] < rows["alexnet", 0.2, "torch"]["weight_bytes"]
    assert rows["alexnet", 0.1, "finepruning"]["speedup"] == 1.0
    assert rows["vgg16", 0.2, "torch"]["error"] == "RuntimeError: no memory for this one"
    assert rows["linear 64x16", 0.1, "cusparse"]["median_ms"] == 1.0
    assert "NO TIME RuntimeError: no memory" in capsys.readouterr().out


def test_what_the_time_does_not_allow_is_listed_and_measured_on_resuming(faked, tmp_path):
    path, networks = tmp_path / "out.json", ("--networks", "alexnet", "--densities", "0.2")
    code, result = _run(faked, path, *networks, "--budget", "0")
    assert code == 1
    assert all(row["error"].startswith("not measured: 0 s are over") for row in result["rows"])
    _, resumed = _run(faked, path, *networks, "--resume")
    assert len(resumed["rows"]) == len(result["rows"])
    assert all(row["median_ms"] == 1.0 for row in resumed["rows"])


def test_thinning_keeps_the_largest_weights(gpu):
    networks = importlib.import_module("gpu_networks")
    torch.manual_seed(0)
    dense = torch.randn(9, 50)
    thin = networks.thinner(networks.CSR.from_dense(dense), 0.2).to_dense()
    threshold = dense.abs().flatten().sort(descending=True).values[89]
    assert torch.equal(thin, torch.where(dense.abs() >= threshold, dense, 0.0))
