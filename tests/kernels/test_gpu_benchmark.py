"""benchmarks/gpu.py from its first line to its file, with ordinary memory in place of a GPU."""

import importlib
import json
import os
import subprocess
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
    compiled = [line for line in out.splitlines() if "torch_compile" in line]
    assert compiled
    assert all("NO TIME not measured" in line for line in compiled)
    gpu.main(["--dry-run", "--compile"])
    assert "NO TIME" not in capsys.readouterr().out


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
    common = ["--no-build", "--no-compile-ahead", "--out", str(path), "--batches", "1", "--dtypes", "float32"]
    code = gpu.main([*common, "--worker", *arguments])
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
    late = [row for row in result["rows"] if "left_out" not in row]
    assert all(row["error"].startswith("not measured: 0 s are over") for row in late)
    _, resumed = _run(faked, path, *networks, "--resume")
    assert len(resumed["rows"]) == len(result["rows"])
    assert all(row["median_ms"] == 1.0 for row in resumed["rows"] if "left_out" not in row)


ENDED = "the process ended while this was measured"


def _supervise(gpu, monkeypatch, path, *arguments):
    """Like `_run`, with the processes that measure in this one; also the arguments of each."""
    started = []

    def process(command, **more):
        if "--worker" not in command:
            return real(command, **more)
        started.append(command[command.index(gpu.__file__) + 1 :])
        try:
            return SimpleNamespace(returncode=gpu.main(started[-1]))
        except SystemExit:
            return SimpleNamespace(returncode=-11)

    real = gpu.subprocess.run
    monkeypatch.setattr(gpu.subprocess, "run", process)
    common = ["--no-build", "--no-compile-ahead", "--out", str(path), "--batches", "1", "--dtypes", "float32"]
    return gpu.main([*common, "--networks", "alexnet", "--densities", "0.2", *arguments]), started


def _fails(monkeypatch, gpu, times):
    """The first ``times`` measurements of float32 networks end the process."""
    measured, left = gpu.measured, [times]

    def ends(job, networks):
        if not job.linear and job.precision == "float32" and left[0] > 0:
            left[0] -= 1
            sys.exit("killed")
        return measured(job, networks)

    monkeypatch.setattr(gpu, "measured", ends)


def test_rows_that_ended_the_process_are_tried_once_more_in_another(faked, tmp_path, monkeypatch, capsys):
    path = tmp_path / "out.json"
    _fails(monkeypatch, faked, 1)
    code, started = _supervise(faked, monkeypatch, path)
    result = json.loads(path.read_text())
    assert code == 1  # for the check that failed
    assert result["failed_checks"] == ["bad: AssertionError: off by one"]
    assert all(row["median_ms"] == 1.0 for row in result["rows"] if "left_out" not in row)
    assert len(started) == 2
    assert capsys.readouterr().out.count("CHECK FAILED") == 1


def test_rows_that_end_every_process_are_named_and_the_others_measured(faked, tmp_path, monkeypatch):
    path = tmp_path / "out.json"
    _fails(monkeypatch, faked, 9)
    code, started = _supervise(faked, monkeypatch, path)
    rows = json.loads(path.read_text())["rows"]
    assert code == 1
    assert len(started) == 3
    ended = [row for row in rows if "error" in row]
    assert {(row["network"], row["error"], row["tries"]) for row in ended} == {("alexnet", ENDED, 2)}
    assert sum(row.get("median_ms") == 1.0 for row in rows) > len(ended)
    keys = [(row["network"], row["density"], row["peer"]) for row in rows]
    assert len(keys) == len(set(keys))
    _, resumed = _supervise(faked, monkeypatch, path, "--resume")
    assert len(resumed) == 1  # they are not tried again
    assert [row for row in json.loads(path.read_text())["rows"] if "error" in row] == ended


@pytest.mark.parametrize("before", [None, '{"rows": [], "failed_checks": []}'])
def test_a_process_that_ends_before_it_measures_is_not_started_again(faked, tmp_path, monkeypatch, before):
    path = tmp_path / "out.json"
    if before is not None:
        path.write_text(before)
    monkeypatch.setattr(sys.modules["gpu_checks"], "run", lambda **_: sys.exit("killed"))
    code, started = _supervise(faked, monkeypatch, path)
    assert code == 1
    assert len(started) == 1
    assert (path.read_text() if path.exists() else None) == before


def test_what_is_left_out_is_listed_and_no_failure(faked, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["gpu_checks"], "all_checks", lambda: iter([("good", lambda: None)]))
    code, result = _run(faked, tmp_path / "out.json", "--networks", "alexnet", "--densities", "0.2")
    assert code == 0
    assert [row["peer"] for row in result["rows"] if "left_out" in row] == [
        "torch_compile",
        "torch_compile_tf32",
    ]


def test_checks_that_passed_are_not_run_again_on_resuming(faked, tmp_path, monkeypatch, capsys):
    path, networks = tmp_path / "out.json", ("--networks", "alexnet", "--densities", "0.2")
    _run(faked, path, *networks)
    capsys.readouterr()
    _run(faked, path, *networks, "--resume")
    assert "CHECK FAILED" in capsys.readouterr().out  # they had not passed
    monkeypatch.setattr(sys.modules["gpu_checks"], "all_checks", lambda: iter([("good", lambda: None)]))
    _run(faked, path, *networks)
    capsys.readouterr()
    _, resumed = _run(faked, path, *networks, "--resume")
    out = capsys.readouterr().out
    assert "ok good" not in out
    assert resumed["failed_checks"] == []
    monkeypatch.setattr(faked, "commit", lambda: "another")
    _run(faked, path, *networks, "--resume")
    assert "ok good" in capsys.readouterr().out


TINY = """
import sys

import torch
from torch import nn
from finepruning.bench import cuda_offline
from finepruning.bench.networks import prune_uniform
from finepruning.engine.capture import capture
from finepruning.engine.fuse import fuse

class Tiny:
    def __init__(self, name):
        torch.manual_seed(0)  # tiles depend on how the weights are spread over the rows
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8)).eval()
        prune_uniform(network, 0.1, 0.1)
        self.captured = capture(network, (3, 8, 8))

    def plan(self, density, batch, dtype):
        return fuse(*self.captured, batch, dtype)

cuda_offline.Outline = Tiny
sys.exit(cuda_offline.main(["tiny", "1", sys.argv[1], "90", "0.1"]))
"""


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", {"spmv", "sparse_conv2d"}),
        ("float16", {"spmv", "sparse_conv2d", "expand", "dense_conv2d"}),
    ],
)
def test_compiling_ahead_fills_the_cache(tmp_path, dtype, expected):
    """A second process finds every kernel there."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    kernels = []
    for _ in range(2):
        command = [sys.executable, "-c", TINY, dtype]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) >= 4  # both layers, in the plan and alone
        kernels.append({str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("*.cubin")})
    assert kernels[0] == kernels[1]
    assert {Path(name).stem.removesuffix("_kernel") for name in kernels[0]} == expected


def test_thinning_keeps_the_largest_weights_and_the_norm(gpu):
    networks = importlib.import_module("gpu_networks")
    torch.manual_seed(0)
    dense = torch.randn(9, 50)
    thin = networks.thinner(networks.CSR.from_dense(dense), 0.2).to_dense()
    threshold = dense.abs().flatten().sort(descending=True).values[89]
    largest = torch.where(dense.abs() >= threshold, dense, 0.0)
    torch.testing.assert_close(thin, largest * (dense.norm() / largest.norm()))
