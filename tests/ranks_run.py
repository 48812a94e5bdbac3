"""The tiny run as one process of torchrun's, of which rank 1 dies: ``ranks_run.py IMAGES OUT WHERE``.

WHERE is what rank 0 does then: "talking" (it waits for rank 1 in a reduction) or "away" (it hears nothing).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
from tiny_run import tiny_config, use_tiny_network

from finepruning import loop
from finepruning.cli import run as command_line
from finepruning.training import train_epoch


def train_until_death(*arguments: object, **options: object) -> float:
    """Stands in for `train_epoch`: rank 1 ends in the first round as if the system had killed it."""

    def die(step: int, loss: float) -> None:
        if int(os.environ["RANK"]) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if sys.argv[3] == "away":
            time.sleep(600)

    if options["surgery"] is not None:
        options["after_step"] = die
    return train_epoch(*arguments, **options)  # type: ignore[arg-type]


def main() -> int:
    torch.set_num_threads(1)
    use_tiny_network(setattr)
    loop.train_epoch = train_until_death  # type: ignore[attr-defined]
    config = tiny_config(Path(sys.argv[1]), Path(sys.argv[2]), search="random")
    flags = []
    for name, value in vars(config).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{'' if value else 'no-'}{flag}")
        elif value is not None and name != "data":
            flags += [f"--{flag}", str(value)]
    return command_line(["compress", sys.argv[1], *flags])


if __name__ == "__main__":
    sys.exit(main())
