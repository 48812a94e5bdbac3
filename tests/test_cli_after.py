"""Commands on a finished run, through the command line: a tiny network that was really compressed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import CLASSES, make_images, tiny_config, use_tiny_network

from finepruning.cli import run
from finepruning.compress import compress

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    use_tiny_network(patch.setattr)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    patch.undo()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "photos"
    make_images(folder)
    return folder


@pytest.fixture(scope="module")
def original(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "runs" / "one"
    compress(tiny_config(images, out, search="random", trials=2))
    return out


@pytest.fixture
def finished(original: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def fails(capsys: Captured, *arguments: object) -> str:
    """The one line that a bad command line ends with."""
    capsys.readouterr()
    assert run([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err.splitlines()[-1]


def answer(capsys: Captured, *arguments: object) -> object:
    """What a command with --json prints."""
    capsys.readouterr()
    assert run([*(str(a) for a in arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_report_writes_the_files_again(finished: Path, capsys: Captured) -> None:
    for name in ("report.html", "report.md", "pareto.png"):
        (finished / name).unlink()
    assert run(["report", str(finished)]) == 0
    assert capsys.readouterr().out.strip() == str(finished / "report.html")
    for name in ("report.html", "report.md", "pareto.png"):
        assert (finished / name).stat().st_size > 1000


def test_report_adds_what_an_older_run_does_not_know(finished: Path, capsys: Captured) -> None:
    report = json.loads((finished / "report.json").read_text())
    known = report.pop("confusion")
    (finished / "report.json").write_text(json.dumps(report))
    shutil.rmtree(finished / "examples", ignore_errors=True)
    assert run(["report", str(finished)]) == 0
    assert "taken for" not in (finished / "report.html").read_text()
    assert answer(capsys, "report", finished, "--test")["confusion"] == known  # type: ignore[index]
    assert json.loads((finished / "report.json").read_text())["confusion"] == known
    assert "test images" in (finished / "report.html").read_text()


def test_report_of_what_is_no_finished_run(finished: Path, capsys: Captured, tmp_path: Path) -> None:
    assert "not a run" in fails(capsys, "report", tmp_path / "nowhere")
    (finished / "report.json").unlink()
    assert "--resume" in fails(capsys, "report", finished)


def test_bench_leaves_its_result_in_the_report(finished: Path, capsys: Captured) -> None:
    assert "Not measured yet" in (finished / "report.html").read_text()
    options = ["--batch", "1", "--threads", "1", "--peers", "torch", "--no-memory", "--seconds", "0.001"]
    assert run(["bench", str(finished), *options]) == 0
    text = (finished / "report.html").read_text()
    assert "Not measured yet" not in text
    assert "against best dense" in text
    capsys.readouterr()
    assert run(["bench", str(finished), *options, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["peer"] == "finepruning"


def test_classes_are_those_of_the_folder(finished: Path) -> None:
    assert json.loads((finished / "report.json").read_text())["classes"] == list(CLASSES)
