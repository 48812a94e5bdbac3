"""SIGKILL in the middle of a run, then --resume: the model file is the one of an uninterrupted run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "kill_runs.py"


@pytest.mark.timeout(900)
def test_killed_and_resumed(tmp_path: Path) -> None:
    """At least 20 kills at random moments; benchmarks/resume_kills.py makes many more."""
    command = [sys.executable, "-W", "ignore", str(SCRIPT), str(tmp_path), "20", "0"]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert len(result["kills"]) >= 20
    assert len({kill["phase_index"] for kill in result["kills"]}) >= 3
    assert result["equal"] == [True] * len(result["equal"]) != []
