"""What all commands have in common: help with examples, --json, --debug, exit codes, completion."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from finepruning.cli import app, run
from finepruning.commands.output import json_text

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
Captured = pytest.CaptureFixture[str]


def flags(command: str) -> dict[str, Any]:
    """Every spelling of every option of a command -> the option."""
    return {
        flag: parameter
        for parameter in COMMANDS[command].params
        if parameter.param_type_name == "option"
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_is_explained(command: str) -> None:
    silent = [p.name for p in COMMANDS[command].params if not (p.help or "").strip()]
    assert silent == []


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_json_and_debug_are_flags_everywhere(command: str) -> None:
    known = flags(command)
    assert known["--json"].is_flag
    assert known["--debug"].is_flag


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_examples_of_the_help_exist(command: str, capsys: Captured) -> None:
    assert run([command, "--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    examples = [shlex.split(line) for line in lines if line.startswith("finepruning ")]
    assert len(examples) >= 2
    for example in examples:
        assert example[1] == command
        for word in example:
            assert not word.startswith("-") or word in flags(command), example


@pytest.mark.parametrize("command", ["bench", "inspect", "report", "sensitivity", "export"])
def test_without_a_name_it_is_the_latest_run(
    command: str, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([command, *(["--to", "torch"] if command == "export" else []), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "runs/latest" in captured.err


def test_an_empty_line_is_help(capsys: Captured) -> None:
    assert run([]) == 0
    captured = capsys.readouterr()
    assert "Usage" in captured.out
    assert captured.err == ""


def test_numbers_that_are_not_finite_are_null() -> None:
    content = {"a": [1.5, float("nan")], "b": (float("inf"), "x", None, True)}
    assert json.loads(json_text(content)) == {"a": [1.5, None], "b": [None, "x", None, True]}


@pytest.mark.parametrize(
    ("shell", "expected"),
    [("bash", "complete -o default -F"), ("zsh", "#compdef finepruning"), ("fish", "complete")],
)
def test_completion_is_printed(shell: str, expected: str) -> None:
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    result = subprocess.run(
        [sys.executable, "-c", "from finepruning.cli import main; main()", "--show-completion", shell],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert expected in result.stdout
    assert "finepruning" in result.stdout
