"""Random search: the control that Bayesian optimization has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from finepruning.search.space import Space
from finepruning.search.trial import Proposal, Trial
from finepruning.seeding import derive_seed


class RandomSearch:
    """The same starting points, then uniform points of the cube."""

    def __init__(self, space: Space, seed: int, previous: Sequence[float] | None = None) -> None:
        self._space = space
        self._seed = seed
        self._starts = space.starts(previous)

    @property
    def starts(self) -> int:
        return len(self._starts)

    def propose(self, history: Sequence[Trial], count: int) -> list[Proposal]:
        return [self._proposal(len(history) + position) for position in range(count)]

    def _proposal(self, index: int) -> Proposal:
        if index < len(self._starts):
            return self._starts[index]
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "random", index))
        x = torch.rand(self._space.dimensions, generator=generator, dtype=torch.float64)
        return Proposal(self._space.canonical(x.tolist()), "random")
