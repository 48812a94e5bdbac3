"""Ctrl-C on the real command: a signal to a real process, at the moments that a user meets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import signal
import sys
import torch
from tiny_run import use_tiny_network
from finepruning.cli import run
torch.set_num_threads(1)
# a shell's background job starts with the signal ignored, and so would everything below it
signal.signal(signal.SIGINT, signal.default_int_handler)
use_tiny_network(setattr)
sys.exit(run(sys.argv[1:]))
"""
OPTIONS = ["--dense-epochs", "2", "--rounds", "2", "--trials", "3", "--epochs", "1", "--batch-size", "8"]
OPTIONS += ["--search", "random", "--device", "cpu"]


def start(*arguments: str) -> subprocess.Popen[str]:
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-u", "-c", SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
    )


# The searches and rounds in between are interrupted, without a process each, in test_compress.py.
@pytest.mark.parametrize("moment", ["dense fine-tuning (", "export and test ("])
def test_an_interrupt_ends_cleanly_and_can_be_resumed(moment: str, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start("compress", str(images), "--out", str(out), *OPTIONS)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(moment):
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate()
    assert process.returncode == 130, errors
    assert rest == ""
    assert errors.splitlines()[-1] == f"interrupted; to continue: finepruning compress --resume {out}"
    assert "Traceback" not in "".join(lines) + errors
    assert not list(out.rglob("*.tmp"))
    assert not (out / "report.json").exists()
    resumed = start("compress", "--resume", str(out))
    text, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    assert "test accuracy" in text
    assert (out / "report.html").exists()
