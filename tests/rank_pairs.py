"""Runs of one process beside runs of two ranks: ``python rank_pairs.py FOLDER``.

Prints, by name, how far the two results are apart as JSON. A process of its own, whose runs are forks of it:
two ranks would otherwise spend their time importing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_run import make_images, run_tiny
from torch import nn

OPTIONS: dict[str, dict[str, Any]] = {
    # Everything but BatchNorm, dropout included; proposals of random search depend on their number alone.
    "plain": {"search": "random", "norms": False, "augmentation": "crop"},
    "norms": {"search": "random", "norms": True, "augmentation": "dihedral"},
    # One process that proposes two candidates at a time against two that evaluate one of them each.
    "batches": {"search": "budget", "norms": True, "trials": 8, "rounds": 1, "proposals": 2, "look_ahead": 2},
}


def run(images: Path, out: Path, rank: int, count: int, port: int, options: dict[str, Any]) -> None:
    if count > 1:
        job = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ |= {name: str(value) for name, value in job.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if not options.pop("norms"):
        nn.BatchNorm2d = lambda channels: nn.Identity()  # type: ignore[misc,assignment]
    run_tiny(images, out, resume=False, **options)


def start(images: Path, out: Path, count: int, options: dict[str, Any]) -> list[int]:
    """Exit codes of the ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = [
        fork.Process(target=run, args=(images, out, rank, count, port, dict(options)))
        for rank in range(count)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return [rank.exitcode or 0 for rank in ranks]


def compared(one: Path, two: Path) -> dict[str, Any]:
    """Largest difference of any tensor, relative to the largest value in it, and what else must agree."""
    tensors, others = (load_file(run / "checkpoints" / "state.safetensors") for run in (one, two))
    trials, other_trials = (
        [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()] for run in (one, two)
    )
    return {
        "names": sorted(tensors) == sorted(others),
        "masks": all(torch.equal(tensors[n], others[n]) for n in tensors if n.startswith("mask.")),
        "difference": max(
            float(
                (tensors[n].float() - others[n].float()).abs().max()
                / tensors[n].float().abs().max().clamp(1e-9)
            )
            for n in tensors
        ),
        "trials": [t["index"] for t in trials] == [t["index"] for t in other_trials],
        "kinds": [t["kind"] for t in other_trials],
        "points": max(
            abs(a - b)
            for t, u in zip(trials, other_trials, strict=True)
            for a, b in zip(t["x"], u["x"], strict=True)
        ),
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # with more, a fork would wait for threads that it does not have
    make_images(folder / "images")
    import botorch.optim.optimize  # noqa: F401

    import finepruning.engine
    import finepruning.report.pareto_plot  # noqa: F401

    found = {}
    for name, options in OPTIONS.items():
        codes = [start(folder / "images", folder / f"{name}-{count}", count, options) for count in (1, 2)]
        assert codes == [[0], [0, 0]], (name, codes)
        found[name] = compared(folder / f"{name}-1", folder / f"{name}-2")
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
