"""What a search tries and what it learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Proposal:
    """Parameters to evaluate: a point of the unit cube and where it came from (such as "erk" or "search")."""

    x: tuple[float, ...]
    kind: str


@dataclass(frozen=True)
class Trial:
    """One evaluated proposal.

    Attributes:
        round, index: which search, and which trial of it, both from 1 and 0.
        kind: of the proposal. x: its point in the unit cube.
        theta: per layer, log of the factor on the saliency.
        objective: what the search minimises. loss, accuracy: on validation images, without retraining;
            the loss at its best temperature.
        density: of the masks that were evaluated. seconds: it took.
    """

    round: int
    index: int
    kind: str
    x: tuple[float, ...]
    theta: tuple[float, ...]
    objective: float
    loss: float
    accuracy: float
    density: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Trial:
        return cls(**{**data, "x": tuple(data["x"]), "theta": tuple(data["theta"])})


class Search(Protocol):
    """Proposes trials. A function of the history alone, so that a resumed search goes on as it would have.

    Attributes:
        starts: number of the first proposals that are given, whatever the trials were.
    """

    @property
    def starts(self) -> int: ...

    def propose(self, history: Sequence[Trial], count: int) -> list[Proposal]:
        """The next ``count`` proposals after the trials of this round so far, to be evaluated together.

        Either all of them are among the first ``starts``, or none is.
        """
        ...


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the lowest objective; the earliest of equals."""
    return min(trials, key=lambda trial: (trial.objective, trial.index))
