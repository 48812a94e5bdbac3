"""`--target-latency`, with clocks that tell what a test wants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import tiny_config
from torch import nn

from finepruning import SparseModel
from finepruning.compress import compress
from finepruning.config import CompressConfig
from finepruning.errors import ArgumentError
from finepruning.pruning import Surgery, prunable_layers
from finepruning.sparse.csr import CSR
from finepruning.sparse.storage import StoredModel
from finepruning.targets import choice, latency_table
from finepruning.targets.latency import LatencyTarget
from finepruning.targets.latency_table import DENSITIES, LatencyTable

SIZES = {"0": 162, "6": 288}


def proportional(names: dict[str, int], *, rest: float = 0.1) -> LatencyTable:
    """A weight of the first layer takes twice as long as one of the second; dense ones a fifth less."""
    layers = [
        tuple((0.8 if d == 1.0 else 1.0) * price * max(1, d * size) for d in DENSITIES)
        for price, size in zip((0.02, 0.01), names.values(), strict=True)
    ]
    network = tuple(rest + sum(row) for row in zip(*layers, strict=True))
    return LatencyTable(
        tuple(names), tuple(names.values()), network, tuple(layers), rest, 9.0, (True,) * len(names)
    )


def nonzeros(stored: StoredModel) -> list[int]:
    return [
        weight.nnz if isinstance(weight, CSR) else int(torch.count_nonzero(weight))
        for name, weight in stored.tensors.items()
        if name.endswith("weight")
    ]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5)).eval()


def captured(module: nn.Module) -> StoredModel:
    return SparseModel.from_dense(module, torch.zeros(1, 3, 8, 8)).stored


def test_layers_are_interpolated_and_added() -> None:
    table = proportional(SIZES)
    counts = np.array([[16, 100, 162], [29, 144, 288]])
    expected = [0.1 + 0.32 + 0.29, 0.1 + 0.8 * 162 * 0.02 + 1.44, 0.1 + 0.8 * (162 * 0.02 + 2.88)]
    assert table.cost(counts) == pytest.approx(expected, rel=0.03)
    assert table.dense == pytest.approx(0.1 + 0.8 * 6.12)
    assert replace(table, pytorch=2.0).dense == 2.0


def test_times_without_a_clock_in_between_scale_the_prediction() -> None:
    table = proportional(SIZES)
    faster = replace(table, network=tuple(0.5 * ms for ms in table.network))
    counts = np.array([[50], [60]])
    assert faster.cost(counts) == pytest.approx(0.5 * table.cost(counts))


def test_where_layers_cannot_be_timed_apart_the_network_is_interpolated() -> None:
    table = replace(proportional(SIZES), layers=None)
    some = table.cost(np.array([[45, 162], [0, 288]]))
    assert some[0] == pytest.approx(table.network[DENSITIES.index(0.1)])
    assert some[1] == pytest.approx(table.network[-1])


@pytest.mark.parametrize("truth", [(1.0, 0.0), (1.4, 0.0), (0.6, 0.3), (1.0, 0.5)])
def test_masks_are_corrected_until_the_network_is_as_fast_as_asked(truth: tuple[float, float]) -> None:
    """The clock says what the table says, times a factor, plus a constant."""
    module = network()
    layers = prunable_layers(module)
    table = proportional({name: weight.numel() for name, weight in layers.items()})
    table = replace(table, switches=(False, False))  # no layer big enough to leave a gap
    clock: list[float] = []

    def measure(stored: StoredModel, batch: int, device: torch.device) -> float:
        counts = np.array(nonzeros(stored))[:, None]
        clock.append(truth[0] * float(table.cost(counts)[0]) + truth[1])
        return clock[-1]

    config = CompressConfig(target_latency=5.0, rounds=1, device="cpu")
    target = LatencyTarget(config, table, captured, measure)
    surgery = Surgery(layers)
    target.begin(1, surgery.saliency())
    surgery.cut([0.0, 0.0], target.keep)
    target.settle(module, lambda keep: surgery.cut([0.0, 0.0], keep))
    delivered = measure(captured(module), 1, torch.device("cpu"))
    assert 0.95 * 5.0 <= delivered <= 5.0
    assert target.state["measured"] == pytest.approx(delivered)
    assert target.state["corrections"] == len(clock) - 2


def test_a_clock_that_never_agrees_leaves_the_nearest_that_fits() -> None:
    module = network()
    layers = prunable_layers(module)
    table = proportional({name: weight.numel() for name, weight in layers.items()})
    readings = iter([9.0, 2.0, 4.0, 8.0, 1.0, 3.0])
    config = CompressConfig(target_latency=5.0, rounds=1, device="cpu")
    target = LatencyTarget(config, table, captured, lambda *_: next(readings))
    surgery = Surgery(layers)
    target.begin(1, surgery.saliency())
    surgery.cut([0.0, 0.0], target.keep)
    kept: list[int] = []

    def recut(keep: Any) -> None:
        surgery.cut([0.0, 0.0], keep)
        kept.append(surgery.kept)

    target.settle(module, recut)
    assert target.state["measured"] == 4.0
    assert surgery.kept == kept[1]  # of the third measurement


@pytest.mark.usefixtures("tiny")
def test_a_run_reports_what_it_was_asked_for(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "latency_table", lambda stored, sizes, *_: proportional(sizes))
    monkeypatch.setattr(choice, "network_ms", lambda stored, *_: 0.2 + 0.012 * sum(nonzeros(stored)))
    report = compress(
        tiny_config(
            images,
            tmp_path / "run",
            target_density=None,
            target_latency=2.0,
            latency_batch=3,
            search="random",
            splicing=False,
        )
    )
    found = report["target"]
    assert found["name"] == "target_latency"
    assert found["asked"] == 2.0
    assert found["reached"] == pytest.approx(0.2 + 0.012 * sum(layer["nnz"] for layer in report["layers"]))
    assert 0.95 * 2.0 <= found["reached"] <= 2.0
    assert (found["batch"], found["threads"], found["device"]) == (3, 1, "cpu")
    assert set(found["table"]["layers"]) == {"0", "6"}
    text = (tmp_path / "run" / "report.md").read_text()
    assert f"{found['reached']:.3g} ms of at most 2 ms" in text
    assert "latency (batch 3, cpu, 1 thread)" in text
    assert "of at most 2" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.usefixtures("tiny")
def test_a_latency_that_no_density_reaches_is_refused_with_the_least(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "latency_table", lambda stored, sizes, *_: proportional(sizes, rest=3.0))
    with pytest.raises(ArgumentError, match=r"target_latency 2 ms cannot be reached: .*takes 3\.03 ms"):
        compress(tiny_config(images, tmp_path / "run", target_density=None, target_latency=2.0))
    assert list(tmp_path.iterdir()) == []


def test_the_table_is_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    module = network()
    stored = captured(module)
    sizes = {name: weight.numel() for name, weight in prunable_layers(module).items()}
    monkeypatch.setattr(latency_table, "SECONDS", 0.001)
    said: list[str] = []
    table = latency_table.latency_table(stored, sizes, 2, torch.device("cpu"), said.append)
    assert len(said) == 1
    assert table.names == ("0", "3")
    assert table.layers is not None
    assert all(len(row) == len(DENSITIES) and min(row) > 0 for row in (*table.layers, table.network))
    assert table.switches == (False, False)

    def never(*_: object) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr(latency_table, "_median", never)
    again = latency_table.latency_table(stored, sizes, 2, torch.device("cpu"), said.append)
    assert again == table
    assert len(said) == 1
    with pytest.raises(AssertionError, match="measured again"):  # another batch costs something else
        latency_table.latency_table(stored, sizes, 3, torch.device("cpu"), said.append)
