"""How many weights one global cut may keep: a fixed number, or as many as a cost allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Keep = int | Callable[[Sequence[Tensor]], int]
"""A number of weights, or what gives it for the scores of all layers."""

Cost = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""From kept weights of every layer, ``[layers, points]``, to what such a network costs, ``[points]``."""

_SHIFT = 16  # a bin holds the scores whose float32 patterns agree but for so many low bits
_BINS = (0x7F800000 >> _SHIFT) + 1  # up to infinity


def kept(keep: Keep, scores: Sequence[Tensor]) -> int:
    """The number of weights that ``keep`` means for these scores."""
    return keep if isinstance(keep, int) else keep(scores)


def counts_of(masks: Sequence[Tensor]) -> NDArray[np.int64]:
    """Kept weights a layer."""
    return np.array([int(mask.sum()) for mask in masks], dtype=np.int64)


def most_within(scores: Sequence[Tensor], cost: Cost, limit: float) -> int:
    """The most weights that `exact_cut` may keep of ``scores`` at a cost of at most ``limit``.

    The cost need not rise with every weight: a layer may cost less dense than nearly dense.

    Args:
        scores: as of `exact_cut`, not negative. cost: see `Cost`. limit: in its units.

    Returns:
        One weight a layer where even that costs more.
    """
    patterns = [_patterns(score) for score in scores]
    bins = np.stack(
        [torch.bincount(pattern >> _SHIFT, minlength=_BINS).cpu().numpy() for pattern in patterns]
    )
    above = np.flip(np.cumsum(np.flip(bins, 1), 1), 1)  # [l, b]: weights of layer l in bin b or higher
    affordable = np.flatnonzero(cost(above) <= limit)
    if affordable.size == 0:
        return len(scores)
    lowest = int(affordable[0])
    base = above[:, lowest]
    if lowest == 0:
        return int(base.sum())
    # Part of the next bin: its weights in the order in which the cut takes them.
    members = [pattern[(pattern >> _SHIFT) == lowest - 1].cpu() for pattern in patterns]
    layer = torch.repeat_interleave(torch.arange(len(members)), torch.tensor([len(m) for m in members]))
    order = torch.cat(members).sort(descending=True, stable=True).indices
    taken = layer[order].numpy()
    enough, too_many = 0, taken.size + 1
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        counts = base + np.bincount(taken[:middle], minlength=len(scores))
        if float(cost(counts[:, None])[0]) <= limit:
            enough = middle
        else:
            too_many = middle
    return int(base.sum()) + enough


def _patterns(score: Tensor) -> Tensor:
    """The scores' float32 bit patterns, which order as the scores do; the highest counts as infinite."""
    flat = score.detach().float().reshape(-1).clone()
    flat[int(flat.argmax())] = torch.inf
    return flat.view(torch.int32)
