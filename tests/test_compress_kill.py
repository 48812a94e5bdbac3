"""SIGKILL in the middle of a run, then --resume: the model file is the one of an uninterrupted run."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import make_images

SCRIPT = Path(__file__).parent / "tiny_run.py"


def start(data: Path, out: Path, how: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-W", "ignore", str(SCRIPT), str(data), str(out), how])


def model_bytes(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((run / "model").iterdir())}


@pytest.mark.timeout(900)  # five processes, each of which imports torch
@pytest.mark.parametrize("seed", [0])
def test_killed_and_resumed(seed: int, tmp_path: Path) -> None:
    make_images(tmp_path / "images")
    assert start(tmp_path / "images", tmp_path / "whole", "new").wait() == 0
    cut, kills = tmp_path / "cut", 0
    process = start(tmp_path / "images", cut, "new")
    moments = random.Random(seed)
    for watched in ("checkpoints/state.safetensors", "trials.jsonl", "model"):
        while not (cut / watched).exists() and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moments.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process = start(tmp_path / "images", cut, "resume")
    assert process.wait() == 0
    assert kills >= 2  # the last one may come too late
    assert model_bytes(cut) == model_bytes(tmp_path / "whole")
