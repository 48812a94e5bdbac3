"""Kills small compression runs at random moments and resumes them until they end.

    python kill_runs.py FOLDER KILLS SEED

makes runs in FOLDER until there were KILLS, and prints where each hit as JSON. A process of its own: its runs
are forks of it, with everything imported already, so that a kill costs a fraction of a second.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import sys
import time
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tiny_run import make_images, run_tiny

from finepruning.phases import phases
from finepruning.run import STATE, TRIALS, RunDirectory

# "random" starts faster than "budget"; its trials are saved in the same way.
OPTIONS: dict[str, Any] = {"search": "random"}


@dataclass(frozen=True)
class Kill:
    """Where a run was found after a SIGKILL: what would come next, and the trials there are."""

    phase: str
    phase_index: int
    step: int
    trials: int


class KillRuns:
    """An uninterrupted run in ``folder / "whole"``, and others that are killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._context = multiprocessing.get_context("fork")
        make_images(folder / "images")
        _run(folder / "images", folder / "first", resume=False)  # here, so that everything is imported
        began = time.monotonic()
        self._start(folder / "whole", resume=False).join()
        self._seconds = time.monotonic() - began
        self.expected = model_files(folder / "whole")

    def run(self, name: str, draw: random.Random, kills: int) -> tuple[list[Kill], dict[str, bytes]]:
        """A run killed up to ``kills`` times; where, and the files of its model.

        Raises:
            AssertionError: it failed otherwise, or something that was saved before a kill was gone after it.
        """
        out = self._folder / name
        found: list[Kill] = []
        while not (out / "report.json").exists():
            started = (out / "config.yaml").exists()
            process = self._start(out, resume=started)
            if len(found) < kills:
                process.join(draw.uniform(0.0, self._seconds / 5))
                process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            if process.exitcode != 0 and (out / "config.yaml").exists():
                found.append(position(out))
        places = [(kill.phase_index, kill.step, kill.trials) for kill in found]
        assert places == sorted(places)
        return found, model_files(out)

    def _start(self, out: Path, *, resume: bool) -> BaseProcess:
        process = self._context.Process(target=_run, args=(self._folder / "images", out, resume))
        process.start()
        return process


def _run(images: Path, out: Path, resume: bool) -> None:
    run_tiny(images, out, resume=resume, **OPTIONS)


def position(out: Path) -> Kill:
    """How far the run in ``out`` is, from its files."""
    index, step, name = 0, 0, "start"
    if (out / STATE).exists():
        with safe_open(out / STATE, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
        index, step = facts["phase"], facts["step"]
        with RunDirectory.open(out) as run:
            plan = phases(run.config())
        name = plan[index].kind if index < len(plan) else "export"
    trials = (out / TRIALS).read_bytes().count(b"\n") if (out / TRIALS).exists() else 0
    return Kill(name, index, step, trials)


def model_files(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((run / "model").iterdir())}


def main(folder: Path, wanted: int, seed: int) -> None:
    torch.set_num_threads(1)  # with more, a fork would wait for threads that it does not have
    runs, draw, kills, equal = KillRuns(folder), random.Random(seed), [], []
    while len(kills) < wanted:
        where, model = runs.run(f"cut{len(equal)}", draw, kills=8)
        kills += [asdict(kill) for kill in where]
        equal.append(model == runs.expected)
    print(json.dumps({"kills": kills, "equal": equal}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
