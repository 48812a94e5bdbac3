"""Random numbers that depend on where a run is, not on how it got there.

Every consumer of randomness gets its own seed from the run's seed and its place (phase, round, epoch,
trial). A run that was interrupted and resumed therefore draws the same numbers as one that was not.
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *place: str | int) -> int:
    """A seed in [0, 2**63) for one place in a run; the same on every machine and Python version."""
    text = "/".join([str(seed), *map(str, place)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
