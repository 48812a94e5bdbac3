"""What this process knows of its job before anything heavy is imported."""

from __future__ import annotations

import os


def speaks() -> bool:
    """Whether this process prints: it is one of its own, or rank 0 of a job of torchrun's."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or int(os.environ.get("RANK", "0")) == 0
