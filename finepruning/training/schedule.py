"""Learning rates over a phase of training."""

from __future__ import annotations

import math


def cosine(step: int, steps: int, peak: float, warmup_steps: int = 0) -> float:
    """Learning rate of ``step`` (from 0): linear rise to ``peak``, then half a cosine towards 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * peak * (1.0 + math.cos(math.pi * done))
