"""A compression run of several processes: what they must fit, and how it ends when one of them does."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from finepruning.config import CompressConfig
from finepruning.errors import ArgumentError, DeviceError, JobError
from finepruning.process import speaks
from finepruning.training import distributed

FAILED = 2


def check_job(config: CompressConfig) -> None:
    """Raise ArgumentError or DeviceError where the processes of this job cannot do what ``config`` says."""
    count = distributed.current().count
    if count == 1:
        return
    if config.batch_size % count:
        raise ArgumentError(
            f"batch_size is {config.batch_size}, of all processes together; it must be a multiple of their "
            f"number, {count}"
        )
    measured = [n for n in ("target_latency", "max_accuracy_drop") if getattr(config, n, None) is not None]
    if measured:
        raise ArgumentError(
            f"{measured[0]} is given to {count} processes, which would each measure for itself; use one "
            "process, or --target-density or --target-bytes"
        )
    device = torch.device(config.device or "cpu")
    if device.type != "cuda":
        return
    if ":" in str(device):
        raise DeviceError(
            f"device is {config.device}, but each of the {count} processes takes its own; use --device cuda"
        )
    here, found = distributed.processes_here(), torch.cuda.device_count()
    if here > found:
        raise DeviceError(f"{here} processes on a machine with {found} CUDA devices; start {found} at most")


@contextmanager
def job(path: Path) -> Iterator[None]:
    """Inside, the loss of another process ends this one with a `JobError` that says how to continue ``path``.

    torchrun ends the processes that are left with SIGTERM. That works here even while the main thread waits
    in a library for a process that is gone.
    """
    if distributed.current().count == 1:
        yield
        return
    try:
        with _ended_by_sigterm(_lost(path)):
            yield
    except JobError as error:
        raise JobError(_lost(path)) from error


def _lost(path: Path) -> str:
    return (
        "another process of this job has ended, so it cannot go on; what was saved is intact, continue with: "
        f"torchrun --nproc-per-node {distributed.processes_here()} -m finepruning compress --resume {path}"
    )


@contextmanager
def _ended_by_sigterm(message: str) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        while caught := os.read(reading, 1):
            if caught[0] == signal.SIGTERM:
                if speaks():
                    print(f"error: {message}", file=sys.stderr, flush=True)
                os._exit(FAILED)

    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, previous)
        os.close(writing)
        thread.join()
        os.close(reading)
