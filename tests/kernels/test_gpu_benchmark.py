import importlib.util
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def gpu():
    path = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dry_run_lists_every_row(gpu, capsys):
    assert gpu.main(["--dry-run"]) == 0
    out = capsys.readouterr().out
    for wanted in (
        "alexnet",
        "vgg16",
        "resnet50",
        "b256",
        "dense tf32",
        "cusparse",
        "2:4",
        "linear 25088x4096",
    ):
        assert wanted in out
    assert "compile" not in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(gpu, capsys):
    assert gpu.main(["--no-build"]) == 2
    assert "no CUDA device" in capsys.readouterr().err
