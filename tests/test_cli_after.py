"""Commands on a finished run, through the command line: a tiny network that was really compressed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import CLASSES, tiny_config, tiny_runs

from finepruning.cli import run
from finepruning.compress import compress

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    with tiny_runs():
        yield


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


def answer(capsys: Captured, *arguments: object) -> Any:
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
    assert answer(capsys, "report", finished, "--test")["confusion"] == known
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
    assert run(["bench", str(finished), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["peer"] == "finepruning"


def test_classes_are_those_of_the_folder(finished: Path) -> None:
    assert json.loads((finished / "report.json").read_text())["classes"] == list(CLASSES)


def test_predict_names_classes_of_files_and_folders(finished: Path, images: Path, capsys: Captured) -> None:
    assert run(["predict", str(finished), str(images / "dark" / "0.png"), "--top", "2"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(str(images / "dark" / "0.png"))
    assert line.count("%") == 2
    found = answer(capsys, "predict", finished / "model", images, "--top", "1", "--batch-size", "7")
    assert len(found) == 48
    hits = sum(Path(entry["image"]).parent.name == entry["class"] for entry in found)
    assert hits > 24
    assert all(len(entry["top"]) == 1 for entry in found)


def test_predict_of_what_cannot_be(finished: Path, images: Path, capsys: Captured, tmp_path: Path) -> None:
    assert "nowhere.png" in fails(capsys, "predict", finished, "nowhere.png")
    assert "does not exist" in fails(capsys, "predict", tmp_path / "none", images)
    assert "images" in fails(capsys, "predict", finished).lower()
    assert "top" in fails(capsys, "predict", finished, images, "--top", "0")
    if not torch.cuda.is_available():
        assert "cuda" in fails(capsys, "predict", finished, images, "--device", "cuda")
    (tmp_path / "text.png").write_text("no image")
    capsys.readouterr()
    assert run(["predict", str(finished), str(tmp_path / "text.png"), str(images / "dark" / "0.png")]) == 2
    captured = capsys.readouterr()
    assert captured.out.count("0.png") == 1
    assert captured.err == (
        f"error: 1 of 2 files could not be used, such as {tmp_path / 'text.png'}: not an image\n"
    )


def test_export_says_what_it_wrote(finished: Path, capsys: Captured, tmp_path: Path) -> None:
    output = tmp_path / "net.pt2"
    assert run(["export", str(finished), "--to", "torch", "-o", str(output)]) == 0
    text = capsys.readouterr().out
    assert "dense with zeros" in text
    assert str(output) in text
    result = answer(capsys, "export", finished, "--to", "state_dict", "-o", tmp_path / "net.safetensors")
    assert result["bytes"] == (tmp_path / "net.safetensors").stat().st_size


def test_export_of_what_cannot_be(finished: Path, capsys: Captured, tmp_path: Path) -> None:
    assert "--to" in fails(capsys, "export", finished)
    assert "onnx" in fails(capsys, "export", finished, "--to", "tflite")
    assert "does not exist" in fails(capsys, "export", finished, "--to", "torch", "-o", tmp_path / "x" / "y")


def test_compare_shows_results_and_what_differs(finished: Path, tmp_path: Path, capsys: Captured) -> None:
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    report = json.loads((other / "report.json").read_text())
    report |= {"name": "other", "accuracy": 0.5, "dense_accuracy": 0.75}
    report["config"] |= {"search": "none", "lr": 0.5}
    (other / "report.json").write_text(json.dumps(report))
    assert run(["compare", str(finished), str(other)]) == 0
    text = capsys.readouterr().out
    for expected in ("one", "other", "-25.0", "search", "random", "none", "0.5"):
        assert expected in text
    assert "cannot be compared" not in text
    content = answer(capsys, "compare", finished, other)
    assert content["differences"] == {"search": ["random", "none"], "lr": [0.01, 0.5]}
    report["classes"][0] = "renamed"
    (other / "report.json").write_text(json.dumps(report))
    assert run(["compare", str(finished), str(other)]) == 0
    assert "cannot be compared" in capsys.readouterr().out


def test_compare_of_what_cannot_be(finished: Path, capsys: Captured, tmp_path: Path) -> None:
    assert "two runs" in fails(capsys, "compare", finished)
    assert "report.json" in fails(capsys, "compare", finished, tmp_path / "nowhere")
    (finished / "report.json").unlink()
    assert "--resume" in fails(capsys, "compare", finished, finished)


def test_sensitivity_of_a_run_shows_every_layer(finished: Path, capsys: Captured) -> None:
    assert run(["sensitivity", str(finished), "--densities", "0.5,0.1"]) == 0
    text = capsys.readouterr().out
    for expected in ("at 0.5", "at 0.1", "nothing pruned", "validation images", "sensitivity.png"):
        assert expected in text
    assert (finished / "sensitivity.png").stat().st_size > 1000
    assert "What each layer bears" in (finished / "report.html").read_text()
    stored = json.loads((finished / "sensitivity.json").read_text())
    assert [layer["name"] for layer in stored["layers"]] == ["0", "6"]
    assert answer(capsys, "sensitivity", finished, "--densities", "0.1,0.5") == stored


def test_sensitivity_of_a_model_directory(
    finished: Path, images: Path, capsys: Captured, tmp_path: Path
) -> None:
    model, plot = finished / "model", tmp_path / "layers.png"
    found = answer(capsys, "sensitivity", model, images, "--densities", "0.02", "--plot", plot)
    assert plot.stat().st_size > 1000
    assert [layer["name"] for layer in found["layers"]] == ["0", "6"]
    assert 0.3 <= found["accuracy"] <= 1


def test_sensitivity_of_what_cannot_be(
    finished: Path, images: Path, capsys: Captured, tmp_path: Path
) -> None:
    assert "folder of images" in fails(capsys, "sensitivity", finished / "model")
    assert "0.5,x" in fails(capsys, "sensitivity", finished, "--densities", "0.5,x")
    assert "densities" in fails(capsys, "sensitivity", finished, "--densities", "1.5")
    assert "--plot" in fails(capsys, "sensitivity", finished, "--plot", tmp_path / "no" / "plot.png")
    other = Path(shutil.copytree(images, tmp_path / "other"))
    (other / "dark").rename(other / "black")
    assert "classes" in fails(capsys, "sensitivity", finished / "model", other)
    (finished / "checkpoints" / "dense.safetensors").unlink()
    assert "dense network" in fails(capsys, "sensitivity", finished)


def test_a_run_of_another_version_is_told_by_its_options(finished: Path, capsys: Captured) -> None:
    with (finished / "config.yaml").open("a") as file:
        file.write("sharpness: 3\n")
    (finished / "report.json").unlink()
    assert "another version of finepruning: sharpness" in fails(capsys, "compress", "--resume", finished)
