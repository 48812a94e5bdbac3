"""Learning rates over a phase of training."""

from __future__ import annotations

import math


def cosine(step: int, steps: int, peak: float, warmup_steps: int = 0) -> float:
    """Learning rate of ``step`` (from 0): linear rise to ``peak``, then half a cosine towards 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * peak * (1.0 + math.cos(math.pi * done))


def rise_and_decay(step: int, steps: int, peak: float) -> float:
    """Slow start, fast decay (after Jeddi, Shafiee and Wong, arXiv 2012.13628).

    A linear rise from a tenth of ``peak`` over the first half of the steps, then exponentially down to a
    hundredth of it.
    """
    half = max(1, steps // 2)
    if step < half:
        return peak * (0.1 + 0.9 * (step + 1) / half)
    return float(peak * 0.01 ** ((step + 1 - half) / max(1, steps - half)))
