"""Several processes, as torchrun starts them, over gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import make_images, use_tiny_network

from finepruning.compress import compress
from finepruning.config import CompressConfig

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, "--standalone", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "images"
    make_images(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    folder = tmp_path_factory.mktemp("pairs")
    command = [sys.executable, "-W", "ignore", str(HERE / "rank_pairs.py"), str(folder)]
    found: dict[str, dict[str, object]] = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    )
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["plain", "norms", "batches"])
def test_two_ranks_end_where_one_process_does(name: str, pairs: dict[str, dict[str, object]]) -> None:
    """Weights, optimizer, averages, masks and trials; "norms" has BatchNorm, all have dropout."""
    found = pairs[name]
    assert found["names"]
    assert found["masks"]
    assert found["trials"]
    assert found["difference"] < 1e-4  # type: ignore[operator]
    assert found["points"] < 1e-4  # type: ignore[operator]


@pytest.mark.timeout(900)
def test_candidates_are_proposed_in_batches(pairs: dict[str, dict[str, object]]) -> None:
    assert pairs["batches"]["kinds"].count("search") >= 2  # type: ignore[attr-defined]


@pytest.mark.timeout(900)
def test_the_command_runs_under_torchrun_and_speaks_once(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small = ["--rounds", "1", "--dense-epochs", "1", "--final-epochs", "1", "--search", "none"]
    small += ["--image-size", "32", "--device", "cpu", "--batch-size", "8"]
    done = torchrun("-m", "finepruning", "compress", images, *small, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # one report, not two
    assert report == json.loads((out / "report.json").read_text())
    assert done.stderr.count("final fine-tuning (") == 1


@pytest.mark.timeout(900)
def test_a_batch_that_does_not_divide_is_refused_once(images: Path, tmp_path: Path) -> None:
    done = torchrun(
        "-m",
        "finepruning",
        "compress",
        images,
        "--batch-size",
        "9",
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
    )
    assert done.returncode != 0
    assert done.stderr.count("error: batch_size is 9, of all processes together") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rank_0_is", ["talking", "away"])
def test_a_dead_rank_ends_the_job_and_the_run_can_be_resumed(
    rank_0_is: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    done = torchrun(HERE / "ranks_run.py", images, out, rank_0_is)
    assert done.returncode != 0
    assert done.stderr.count("error: another process of this job has ended") == 1
    assert f"torchrun --nproc-per-node 2 -m finepruning compress --resume {out}" in done.stderr
    use_tiny_network(monkeypatch.setattr)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    report = compress(CompressConfig(), resume=out)
    torch.set_num_threads(threads)
    assert [entry["phase"] for entry in report["history"]] == ["dense"] * 2 + ["round"] * 4 + ["final"] * 2
