"""A run that starts from another: what it keeps, what it costs, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import tiny_config, tiny_runs

import finepruning
from finepruning import RunError
from finepruning.cli import run
from finepruning.compress import Interrupted, compress, dry_run
from finepruning.config import CompressConfig
from finepruning.continuation import from_run
from finepruning.errors import ArgumentError
from finepruning.phases import budget
from finepruning.progress import NoProgress

TOTAL = 3 * 6 * 9 + 96 * 3


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    with tiny_runs():
        yield


@pytest.fixture(scope="module")
def source(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at density 0.2 whose scales are those of uniform densities, so that none of them is 0."""
    out = tmp_path_factory.mktemp("source") / "runs" / "first"
    compress(tiny_config(images, out, search="none", allocation="uniform"))
    return out


def masks(path: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(path / "checkpoints" / "state.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("mask.")}


def facts(path: Path) -> Any:
    with (path / "checkpoints" / "state.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["facts"])


def test_a_smaller_budget_keeps_the_scales_and_only_drops(source: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in source.rglob("*") if file.is_file()}
    report = compress(from_run(source, target_density=0.1, splicing=False, out=str(tmp_path / "run")))
    assert sum(layer["nnz"] for layer in report["layers"]) == round(0.1 * TOTAL)
    assert facts(tmp_path / "run")["theta"] == facts(source)["theta"] != [0.0, 0.0]
    old, new = masks(source), masks(tmp_path / "run")
    assert all(not bool((new[name] & ~old[name]).any()) for name in new)
    assert {entry["phase"] for entry in report["history"]} == {"round", "final"}
    assert len(report["history"]) == 2 + 1  # one round of two epochs and half of the final ones
    assert report["seconds"]["dense"] == 0
    assert not (tmp_path / "run" / "trials.jsonl").exists()
    assert report["accuracy"] == report["sparse_accuracy"]
    first = json.loads((source / "report.json").read_text())
    assert report["dense_accuracy"] == first["dense_accuracy"]
    assert {file: file.read_bytes() for file in source.rglob("*") if file.is_file()} == before


def test_a_larger_budget_keeps_every_weight_and_revives_dense_ones(source: Path, tmp_path: Path) -> None:
    config = from_run(source, target_density=0.5, epochs=1, final_epochs=0, splicing=False, prune_lr=1e-9)
    out = tmp_path / "run"
    report = compress(finepruning.CompressConfig(**{**vars(config), "out": str(out), "l2_sp": 0.0}))
    assert [entry["budget"] for entry in report["rounds"]] == [0.5]
    assert sum(layer["nnz"] for layer in report["layers"]) == round(0.5 * TOTAL)
    old, new = masks(source), masks(out)
    dense = load_file(source / "checkpoints" / "dense.safetensors")
    state = load_file(out / "checkpoints" / "state.safetensors")
    for name, mask in new.items():
        layer = name.removeprefix("mask.")
        assert not bool((old[name] & ~mask).any())
        back = mask & ~old[name]
        weights, originals = state[f"module.{layer}.weight"], dense[f"{layer}.weight"]
        torch.testing.assert_close(weights[back], originals[back], atol=1e-6, rtol=0)


@pytest.mark.parametrize("target_bytes", [4200, 6000])
def test_a_budget_of_bytes_may_lie_on_either_side(target_bytes: int, source: Path, tmp_path: Path) -> None:
    first = json.loads((source / "report.json").read_text())
    out = tmp_path / "run"
    report = compress(from_run(source, target_bytes=target_bytes, splicing=False, rounds=1, out=str(out)))
    assert report["bytes_sparse"] <= target_bytes
    old, new = masks(source), masks(out)
    smaller = target_bytes < first["bytes_sparse"]
    assert report["density"] < first["density"] if smaller else report["density"] > first["density"]
    for name in new:
        inner, outer = (new[name], old[name]) if smaller else (old[name], new[name])
        assert not bool((inner & ~outer).any())


def test_the_reports_say_where_it_started(source: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "second"
    assert run(["compress", "--from", str(source), "--target-density", "0.1", "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    first = json.loads((source / "report.json").read_text())
    assert report["config"]["from_run"] == str(source)
    assert report["from_run"]["density"] == pytest.approx(0.2, abs=1 / TOTAL)
    assert report["from_run"]["accuracy"] == first["accuracy"]
    sentence = "Started from first at density 0.2000"
    assert sentence in (out / "report.md").read_text()
    assert sentence in (out / "report.html").read_text()
    assert json.loads((out / "model" / "config.json").read_text())["provenance"]["from_run"] == "first"
    capsys.readouterr()
    assert run(["compare", str(source), str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"]["from_run"] == [None, str(source)]
    assert run(["sensitivity", str(out), "--densities", "0.5"]) == 0


def test_a_run_may_start_from_one_that_was_started_itself(source: Path, tmp_path: Path) -> None:
    compress(from_run(source, target_density=0.1, out=str(tmp_path / "second")))
    report = compress(from_run(tmp_path / "second", target_density=0.05, out=str(tmp_path / "third")))
    assert sum(layer["nnz"] for layer in report["layers"]) == round(0.05 * TOTAL)
    assert report["from_run"]["name"] == "second"


def test_a_search_from_there_begins_at_its_scales(source: Path, tmp_path: Path) -> None:
    config = from_run(source, target_density=0.1, search="random", trials=2, out=str(tmp_path / "run"))
    compress(config)
    trials = [json.loads(line) for line in (tmp_path / "run" / "trials.jsonl").read_text().splitlines()]
    assert [trial["kind"] for trial in trials] == ["global", "previous"]


def test_dry_run_lets_the_density_fall_from_there(source: Path, tmp_path: Path) -> None:
    plan = dry_run(from_run(source, target_density=0.1, rounds=2, out=str(tmp_path / "run")))
    assert [entry["budget"] for entry in plan["rounds"]] == pytest.approx([0.1125, 0.1], abs=1e-3)
    assert plan["from_run"]["name"] == "first"
    assert list(tmp_path.iterdir()) == []


class Stop(NoProgress):
    """Interrupts at the given unit of work."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, units: int = 1, **metrics: float) -> None:
        self.left -= units
        if self.left <= 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("units", [0, 3, 8])
def test_it_can_be_resumed_without_the_run_it_started_from(
    units: int, source: Path, images: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "first"))
    config = from_run(copy, target_density=0.1)
    compress(CompressConfig(**{**vars(config), "out": str(tmp_path / "whole")}))
    with pytest.raises(Interrupted):
        compress(CompressConfig(**{**vars(config), "out": str(tmp_path / "run")}), progress=Stop(units))
    shutil.rmtree(copy)
    compress(CompressConfig(), resume=tmp_path / "run")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "run/model" / name).read_bytes() == (tmp_path / "whole/model" / name).read_bytes()


def test_a_kill_before_the_first_state_begins_again(source: Path, tmp_path: Path) -> None:
    config = from_run(source, target_density=0.1, out=str(tmp_path / "run"))
    with pytest.raises(Interrupted):
        compress(config, progress=Stop(0))
    (tmp_path / "run/checkpoints/state.safetensors").unlink()
    assert compress(CompressConfig(), resume=tmp_path / "run")["from_run"]["name"] == "first"


def test_what_cannot_be_started_from(source: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no such folder"):
        from_run(tmp_path / "nowhere")
    with pytest.raises(ArgumentError, match=r"which .*first has already"):
        compress(from_run(source, target_density=0.2, out=str(tmp_path / "run")))
    with pytest.raises(ArgumentError, match="give the target"):
        from_run(source)
    with pytest.raises(ArgumentError, match="can only search with a target_density"):
        compress(from_run(source, target_bytes=5000, search="budget", out=str(tmp_path / "run")))
    with pytest.raises(ArgumentError, match="nothing to search; use 'none'"):
        compress(from_run(source, target_density=0.5, search="budget", out=str(tmp_path / "run")))
    with pytest.raises(ArgumentError, match=r"seed is 7, but .*first has 0"):
        from_run(source, seed=7)
    with pytest.raises(ArgumentError, match="densty is no option"):
        from_run(source, densty=0.1)
    with pytest.raises(ArgumentError, match=r"weights is .default.*finepruning\.from_run"):
        compress(tiny_config(images, tmp_path / "run", from_run=str(source), dense_epochs=12))
    with pytest.raises(ArgumentError, match="'kept', which needs a run"):
        CompressConfig(allocation="kept")
    unfinished = Path(shutil.copytree(source, tmp_path / "unfinished"))
    (unfinished / "report.json").unlink()
    with pytest.raises(RunError, match="finish it with compress --resume"):
        from_run(unfinished, target_density=0.1)
    stripped = Path(shutil.copytree(source, tmp_path / "stripped"))
    (stripped / "checkpoints/state.safetensors").unlink()
    with pytest.raises(RunError, match=r"has no checkpoints/state\.safetensors"):
        compress(from_run(stripped, target_density=0.1, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_other_images_are_refused(images: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "photos"))
    out = tmp_path / "first"
    compress(tiny_config(folder, out, search="none", rounds=1, epochs=1, saliency="magnitude"))
    (folder / "dark" / "3.png").unlink()
    with pytest.raises(RunError, match="has changed since the run"):
        compress(from_run(out, target_density=0.1, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_the_command_line_says_what_stays(source: Path, capsys: Any) -> None:
    assert run(["compress", "--from", str(source), "--model", "alexnet", "--target-density", "0.1"]) == 2
    assert "model is 'alexnet', but" in capsys.readouterr().err
    assert run(["compress", "--from", "nowhere", "--target-density", "0.1"]) == 2
    assert "nowhere is not a run directory" in capsys.readouterr().err


def test_a_continued_runs_own_file_of_options_starts_it_again(source: Path, tmp_path: Path) -> None:
    compress(from_run(source, target_density=0.1, out=str(tmp_path / "one")))
    line = ["compress", "--config", str(tmp_path / "one/config.yaml"), "--out", str(tmp_path / "two")]
    assert run(line) == 0
    model = "model/model.safetensors"
    assert (tmp_path / "one" / model).read_bytes() == (tmp_path / "two" / model).read_bytes()


@pytest.mark.parametrize("schedule", ["cubic", "geometric"])
def test_budgets_fall_from_where_the_run_starts(schedule: str) -> None:
    config = CompressConfig(target_density=0.05, rounds=4, density_schedule=schedule)
    densities = [budget(config, number, start=0.2) for number in range(5)]
    assert densities[0] == pytest.approx(0.2)
    assert densities[-1] == pytest.approx(0.05)
    assert densities == sorted(densities, reverse=True)
    assert [budget(config, number, start=0.01) for number in (1, 4)] == [0.05, 0.05]
