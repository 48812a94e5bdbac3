"""Several processes, as torchrun starts them, over gloo."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_run import make_images

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


def forked(folder: Path, what: str) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-W", "ignore", str(HERE / "rank_pairs.py"), str(folder), what]
    found: dict[str, dict[str, Any]] = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    )
    return found


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return forked(tmp_path_factory.mktemp("pairs"), "pairs")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["plain", "norms", "batches"])
def test_two_ranks_end_where_one_process_does(name: str, pairs: dict[str, dict[str, Any]]) -> None:
    """Weights, optimizer, averages, masks and trials; "norms" has BatchNorm, all have dropout."""
    found = pairs[name]
    assert found["names"]
    assert found["masks"]
    assert found["trials"]
    assert found["difference"] < 1e-4
    assert found["points"] < 1e-4


@pytest.mark.timeout(900)
def test_candidates_are_proposed_in_batches(pairs: dict[str, dict[str, Any]]) -> None:
    assert pairs["batches"]["kinds"].count("search") >= 2


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
def test_a_dead_rank_ends_the_job_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    for name, found in forked(tmp_path, "deaths").items():
        assert found["codes"] == [2, -signal.SIGKILL], name
        assert found["said"].count("error: another process of this job has ended") == 1
        assert f"-m finepruning compress --resume {tmp_path / name}" in found["said"]
        assert found["resumed"] == 0
        assert found["report"]
