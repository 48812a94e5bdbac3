"""What a measurement was taken on: machine, versions, commit and date."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import finepruning
from finepruning import _core
from finepruning.environment import cpu_name

ALWAYS = ("torch", "torchvision", "numpy")


def describe(device: torch.device, threads: int, packages: Iterable[str] = ()) -> dict[str, Any]:
    """Everything a reader needs to place the numbers: JSON-ready.

    Args:
        device: where the models ran.
        threads: CPU threads given to every runtime.
        packages: distributions whose versions matter beside PyTorch's.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "memory_gib": _memory_gib(),
            "system": f"{platform.system()} {platform.machine()}",
            "isa": _core.isa(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": threads,
        },
        "versions": {
            "finepruning": finepruning.__version__,
            "python": platform.python_version(),
            **{name: version for name in (*ALWAYS, *packages) if (version := _version(name)) is not None},
        },
    }


def commit() -> str | None:
    """Commit of the source tree this package runs from; None for an installed package.

    A "+" follows when the tree holds changes that are not committed.
    """
    root = Path(finepruning.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
