"""Layers that would lose run dense: decided by times, which are kept on disk, or by a rule without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_plans import attributes, check, conv_step, plan_of, pruned, reference
from torch import nn

from finepruning import SparseModel
from finepruning.engine import cpu_choice
from finepruning.engine.cpu import CpuExecutor
from finepruning.engine.cpu_choice import Place, measure
from finepruning.engine.plan import Plan
from finepruning.engine.timing_table import cache_folder, cache_path


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where times are kept in this test; nothing is known yet."""
    monkeypatch.setenv("FINEPRUNING_CACHE", str(tmp_path))
    return tmp_path


def layer(density: float, batch: int = 1) -> tuple[Plan, torch.Tensor]:
    weight, attrs = pruned((16, 64, 3, 3), density), attributes(padding=1)
    x = torch.randn(batch, 64, 20, 20)
    step = conv_step(weight, None, attrs)
    return plan_of([step], {"x": x.shape, "y": (batch, 16, 20, 20)}), x


def times(monkeypatch: pytest.MonkeyPatch, sparse: float, dense: float) -> list[Any]:
    """Make up what measuring finds; returns the calls made."""
    calls: list[Any] = []

    def found(*arguments: Any) -> tuple[float, float]:
        calls.append(arguments)
        return sparse, dense

    monkeypatch.setattr(cpu_choice, "measure", found)
    return calls


def test_the_faster_way_runs_and_the_plan_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for sparse, dense, kernel in ((2e-3, 1e-3, "aten"), (1e-3, 2e-3, "sparse_"), (1e-3, 0.98e-3, "sparse_")):
        times(monkeypatch, sparse, dense)
        for table in folder.iterdir():
            table.unlink()
        cpu_choice._tables.clear()
        row = CpuExecutor(layer(0.5)[0]).report()[0]
        assert row.kernel.startswith(kernel)
        if kernel == "aten":
            assert row.why_dense == "sparse would take 2000 us, dense 1000 us"
            assert row.bytes == 4 * 16 * 64 * 9
        else:
            assert row.why_dense is None


def test_times_are_kept_for_the_next_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = times(monkeypatch, 2e-3, 1e-3)
    for batch in (1, 1, 3):
        assert CpuExecutor(layer(0.5, batch)[0]).report()[0].kernel == "aten"
        cpu_choice._tables.clear()  # as a new process begins
    assert len(calls) == 2  # a batch size each
    (table,) = folder.iterdir()
    assert table.name.startswith("cpu_")
    table.write_text(table.read_text()[:-20])
    with pytest.warns(UserWarning, match="measured again"):
        CpuExecutor(layer(0.5)[0])
    assert len(calls) == 3


def test_few_nonzeros_and_little_work_are_never_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = times(monkeypatch, 2e-3, 1e-3)
    attrs = attributes()
    tiny = plan_of(
        [conv_step(pruned((4, 4, 3, 3), 0.9), None, attrs)], {"x": (1, 4, 9, 9), "y": (1, 4, 7, 7)}
    )
    for plan in (layer(0.15)[0], tiny):
        assert CpuExecutor(plan).report()[0].kernel.startswith("sparse_")
    assert calls == []
    assert list(folder.iterdir()) == []


def test_without_times_a_rule_of_density_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEPRUNING_CACHE", "off")
    calls = times(monkeypatch, 1e-3, 2e-3)
    plan, x = layer(0.9)
    executor = CpuExecutor(plan)
    row = executor.report()[0]
    assert (row.kernel, row.why_dense) == ("aten", "density 0.90 > 0.6")
    assert CpuExecutor(layer(0.5)[0]).report()[0].kernel.startswith("sparse_")
    assert calls == []
    weight = pruned((16, 64, 3, 3), 0.9)
    check(executor, x, reference(x, weight, None, attributes(padding=1)))


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("chunk", [0, 2])
def test_measuring_times_both_ways(batch: int, chunk: int) -> None:
    plan, _ = layer(0.5, batch)
    for lanes in (False, True):
        place = Place(lanes, lanes, last=not lanes, chunk=chunk if batch > 1 else 0, loop_lost=1.0)
        sparse, dense = measure(plan, plan.steps[0], place, 2)
        assert sparse > 0
        assert dense > 1.0  # what the loop would lose counts against it


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_a_network_whose_layers_run_either_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Alternating dense and sparse layers, with pooling, residuals and loops between them."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 48, 5, 2, 2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(48, 48, 3, padding=1),
        nn.ReLU6(),
        nn.Conv2d(48, 48, 3, padding=1),
        nn.Hardswish(),
        nn.Flatten(),
        nn.Linear(48 * 12 * 12, 300),
        nn.ReLU(),
        nn.Linear(300, 10),
    )
    for parameter in net.parameters():
        if parameter.dim() > 1:
            parameter.data *= torch.rand_like(parameter) < 0.4
    model = SparseModel.from_dense(net.eval(), torch.zeros(1, 3, 48, 48))
    x = torch.randn(batch, 3, 48, 48)
    expected = net(x)
    turns = iter(range(100))
    monkeypatch.setattr(cpu_choice, "measure", lambda *_: (1.0, 2.0 if next(turns) % 2 else 0.5))
    assert torch.allclose(model(x), expected, rtol=1e-4, atol=1e-4)
    reports = [row for row in model.plan(batch) if row.nnz is not None]
    assert {"aten"} < {row.kernel for row in reports}


def test_the_cache_lies_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FINEPRUNING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "finepruning"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == tmp_path / "home" / ".cache" / "finepruning"
    monkeypatch.setenv("FINEPRUNING_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("FINEPRUNING_CACHE", "off")
    assert cache_folder() is None
    path = cache_path({"device": "NVIDIA H200"}, "cuda", tmp_path)
    assert path.parent == tmp_path
    assert path.name.startswith("cuda_nvidia_h200_")
