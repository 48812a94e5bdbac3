"""The command line as a user meets it: help, errors in one line, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image

from finepruning import __version__
from finepruning.cli import run
from finepruning.commands.options import HELP
from finepruning.config import CompressConfig
from finepruning.errors import FinepruningError

Captured = pytest.CaptureFixture[str]


def error_of(capsys: Captured, *arguments: object) -> str:
    """The one line that a bad command line ends with."""
    assert run([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return lines[-1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def images(folder: Path, count: int) -> Path:
    """``count`` images of noise-free colours in ``folder``, which is returned."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (16, 16), (i % 256, 7 * i % 256, 90)).save(folder / f"{i}.png")
    return folder


def test_version_and_help_need_no_torch() -> None:
    code = (
        "import sys; from finepruning.cli import run\n"
        "for arguments in (['--version'], ['--help'], ['compress', '--help'], ['bench', '--help']):\n"
        "    assert run(arguments) == 0, arguments\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"finepruning {__version__}\n")


def test_the_module_is_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "finepruning", "compress", "--densty"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: No such option: --densty")
    assert result.stderr.count("\n") == 1


def test_every_field_of_the_configuration_is_an_option_with_help(capsys: Captured) -> None:
    assert run(["compress", "--help"]) == 0
    text = capsys.readouterr().out
    explained = {name for texts in HELP.values() for name in texts}
    for field in fields(CompressConfig):
        assert field.name in explained
        if field.name != "data":
            assert "--" + field.name.replace("_", "-") in text


def test_usage_errors_are_one_line_and_suggest(capsys: Captured, here: Path) -> None:
    assert "--target-density" in error_of(capsys, "compress", "--target-densty", "0.1")
    assert "bench" in error_of(capsys, "bnch")
    assert "inspect" in error_of(capsys, "frobnicate")
    assert "--rounds" in error_of(capsys, "compress", "--rounds", "many")
    assert "model" in error_of(capsys, "inspect").lower()


@pytest.mark.parametrize("density", ["0", "1.5", "nan", "-0.1"])
def test_target_density_outside_its_range(capsys: Captured, here: Path, density: str) -> None:
    assert "target_density" in error_of(capsys, "compress", "--target-density", density)
    assert list(here.iterdir()) == []


def test_target_density_below_one_weight_a_layer(capsys: Captured, here: Path) -> None:
    error_of(capsys, "compress", "--target-density", "1e-7")
    assert list(here.iterdir()) == []


def test_unknown_model_names_near_ones(capsys: Captured, here: Path) -> None:
    assert "resnet50" in error_of(capsys, "compress", "--model", "resnet5O")


def test_data_that_cannot_be_used(capsys: Captured, here: Path) -> None:
    assert "nowhere" in error_of(capsys, "compress", here / "nowhere")
    (here / "empty").mkdir()
    assert "empty" in error_of(capsys, "compress", here / "empty")
    images(here / "one" / "only", 4)
    assert "class" in error_of(capsys, "compress", here / "one")
    images(here / "few" / "many", 12)
    images(here / "few" / "single", 1)
    assert "single" in error_of(capsys, "compress", here / "few")
    images(here / "bad" / "a", 12)
    images(here / "bad" / "b", 12)
    (here / "bad" / "b" / "3.png").write_bytes(b"no image at all")
    assert "3.png" in error_of(capsys, "compress", here / "bad")
    assert not (here / "runs").exists()


def test_weights_of_another_network(capsys: Captured, here: Path) -> None:
    from safetensors.torch import save_file

    save_file({"stem.weight": torch.zeros(3, 3)}, here / "other.safetensors")
    assert "other.safetensors" in error_of(capsys, "compress", "--weights", here / "other.safetensors")
    assert not (here / "runs").exists()


def test_unwritable_output(capsys: Captured, here: Path) -> None:
    (here / "file").write_text("in the way")
    assert "file" in error_of(capsys, "compress", "--out", here / "file")
    assert (here / "file").read_text() == "in the way"


def test_resume_from_what_is_no_run(capsys: Captured, here: Path) -> None:
    assert "not a run" in error_of(capsys, "compress", "--resume", here)
    line = error_of(capsys, "compress", "--resume", here, "--target-density", "0.2")
    assert "--target-density" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", ["compress", "bench"])
def test_cuda_where_there_is_none(capsys: Captured, here: Path, command: str) -> None:
    (here / "runs" / "latest" / "model").mkdir(parents=True)
    assert "--device cpu" in error_of(capsys, command, "--device", "cuda")


def test_completion_knows_commands_and_options() -> None:
    for words, count, expected in (
        ("finepruning ins", 1, "inspect"),
        ("finepruning bench --pee", 2, "--peers"),
    ):
        environment = {**os.environ, "_FINEPRUNING_COMPLETE": "complete_bash"}
        environment |= {"COMP_WORDS": words, "COMP_CWORD": str(count)}
        code = "from finepruning.cli import main; main()"
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert expected in result.stdout


def test_debug_lets_the_traceback_through(here: Path) -> None:
    with pytest.raises(FinepruningError):
        run(["compress", "--target-density", "7", "--debug"])


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    import finepruning.compress as module

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "dry_run", broken)
    with pytest.raises(ZeroDivisionError):
        run(["compress", "--dry-run"])
