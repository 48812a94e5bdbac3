"""How a long run tells what it is doing; the command line decides how that looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Progress(Protocol):
    """Receives the progress of a run. Units are steps of comparable cost inside one phase."""

    def plan(self, phases: Sequence[tuple[str, int]]) -> None:
        """Announce every phase, in order, with its number of units."""

    def start(self, phase: str) -> None:
        """A phase begins (its name is one of those announced)."""

    def advance(self, units: int = 1, **metrics: float) -> None:
        """Work of the current phase is done; ``metrics`` are the latest figures, such as ``loss=0.31``."""

    def message(self, text: str) -> None:
        """One line worth keeping, such as the result of an epoch or a round."""

    def close(self) -> None:
        """The run has ended, well or not."""


class NoProgress:
    """Says nothing."""

    def plan(self, phases: Sequence[tuple[str, int]]) -> None: ...

    def start(self, phase: str) -> None: ...

    def advance(self, units: int = 1, **metrics: float) -> None: ...

    def message(self, text: str) -> None: ...

    def close(self) -> None: ...
