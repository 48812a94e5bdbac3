"""Runs of one process beside runs of two ranks: ``python rank_pairs.py FOLDER pairs|deaths``.

"pairs" prints, by name, how far the two results are apart as JSON; "deaths" how a job ended whose rank 1
was killed. A process of its own, whose runs are forks of it, since importing takes longer than they do.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_run import make_images, run_tiny, tiny_config, use_tiny_network
from torch import nn

from finepruning import loop
from finepruning.cli import run as command_line
from finepruning.training import train_epoch

OPTIONS: dict[str, dict[str, Any]] = {
    # Everything but BatchNorm, dropout included; proposals of random search depend on their number alone.
    "plain": {"search": "random", "norms": False, "augmentation": "crop"},
    "norms": {"search": "random", "norms": True, "augmentation": "dihedral"},
    # One process that proposes two candidates at a time against two that evaluate one of them each.
    "batches": {"search": "budget", "norms": True, "trials": 8, "rounds": 1, "proposals": 2, "look_ahead": 2},
}


def join_job(rank: int, count: int, port: int) -> None:
    """Describe the job in the environment, as torchrun does."""
    job = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in job.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def run(images: Path, out: Path, rank: int, count: int, port: int, options: dict[str, Any]) -> None:
    if count > 1:
        join_job(rank, count, port)
    if not options.pop("norms"):
        nn.BatchNorm2d = lambda channels: nn.Identity()  # type: ignore[misc,assignment]
    run_tiny(images, out, resume=False, **options)


def start(images: Path, out: Path, count: int, options: dict[str, Any]) -> list[int]:
    """Exit codes of the ranks."""
    fork, port = multiprocessing.get_context("fork"), free_port()
    ranks = [
        fork.Process(target=run, args=(images, out, rank, count, port, dict(options)))
        for rank in range(count)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return [rank.exitcode or 0 for rank in ranks]


def dying(images: Path, out: Path, rank: int, port: int, away: bool) -> None:
    """Rank 1 is killed in the first round; rank 0 waits for it, or is ``away`` and hears nothing of that."""
    join_job(rank, 2, port)
    os.dup2(os.open(out.with_suffix(f".{rank}.log"), os.O_WRONLY | os.O_CREAT), 2)

    def train_until_death(*arguments: Any, **options: Any) -> float:
        def die(step: int, loss: float) -> None:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if away:
                time.sleep(600)

        if options["surgery"] is not None:
            options["after_step"] = die
        return train_epoch(*arguments, **options)

    loop.train_epoch = train_until_death  # type: ignore[attr-defined]
    use_tiny_network(setattr)
    flags = []
    for name, value in vars(tiny_config(images, out, search="random")).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{'' if value else 'no-'}{flag}")
        elif value is not None and name != "data":
            flags += [f"--{flag}", str(value)]
    sys.exit(command_line(["compress", str(images), *flags]))


def death(images: Path, out: Path, away: bool) -> dict[str, Any]:
    """Exit codes, what rank 0 said, and whether the run ended well when it was resumed by one process."""
    fork, port = multiprocessing.get_context("fork"), free_port()
    ranks = [fork.Process(target=dying, args=(images, out, rank, port, away)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    ranks[1].join()
    if away:
        ranks[0].terminate()  # as torchrun does
    ranks[0].join()
    said = out.with_suffix(".0.log").read_text()
    resumed = fork.Process(target=run_tiny, args=(images, out), kwargs={"resume": True})
    resumed.start()
    resumed.join()
    codes = [rank.exitcode for rank in ranks]
    return {
        "codes": codes,
        "said": said,
        "resumed": resumed.exitcode,
        "report": (out / "report.json").exists(),
    }


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


def main(folder: Path, what: str) -> None:
    torch.set_num_threads(1)  # with more, a fork would wait for threads that it does not have
    make_images(folder / "images")
    import botorch.optim.optimize  # noqa: F401

    import finepruning.engine
    import finepruning.report.pareto_plot  # noqa: F401

    if what == "deaths":
        found = {
            name: death(folder / "images", folder / name, name == "away") for name in ("talking", "away")
        }
        print(json.dumps(found))
        return
    found = {}
    for name, options in OPTIONS.items():
        codes = [start(folder / "images", folder / f"{name}-{count}", count, options) for count in (1, 2)]
        assert codes == [[0], [0, 0]], (name, codes)
        found[name] = compared(folder / f"{name}-1", folder / f"{name}-2")
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
