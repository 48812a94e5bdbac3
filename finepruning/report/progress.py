"""Progress of a long run for people: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from finepruning.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

WIDE, NARROW = 120, 90  # columns that the bar and the figures need beside the rest
LINE_EVERY_SECONDS = 15.0  # plain output: at most one progress line in this time


def progress_for(stream: TextIO | None = None) -> Progress:
    """Bars when ``stream`` (standard error unless given) is a terminal that can redraw, else plain lines."""
    stream = sys.stderr if stream is None else stream
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return TerminalProgress(console)
    return PlainProgress(stream)


class TimeLeft:
    """Estimates the seconds left of a run from the phases seen so far.

    A unit's cost is known only inside one phase, so a phase that has not begun is priced like the last
    phase of its kind ("round 2: search" is of the kind "round: search"); a kind not seen yet is priced like
    all units so far, which is rough.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._units: dict[str, int] = {}
        self._done: dict[str, int] = defaultdict(int)
        self._per_unit: dict[str, float] = {}
        self._phase: str | None = None
        self._started = clock()
        self._first: float | None = None  # when the first phase began
        self._begin = self._started

    def plan(self, phases: Sequence[tuple[str, int]]) -> None:
        self._units = dict(phases)

    def start(self, phase: str) -> None:
        if self._phase is not None:
            self._units[self._phase] = self._done[self._phase]  # whatever it skipped needs no time
        self._phase = phase
        self._begin = self._clock()
        if self._first is None:
            self._first = self._begin

    def advance(self, units: int) -> None:
        if self._phase is None:
            return
        self._done[self._phase] += units
        if self._done[self._phase]:
            seconds = (self._clock() - self._begin) / self._done[self._phase]
            self._per_unit[kind_of(self._phase)] = seconds

    @property
    def elapsed(self) -> float:
        return self._clock() - self._started

    def seconds(self) -> float | None:
        """Seconds left, or None before the first unit is done."""
        done = sum(self._done.values())
        if done == 0 or self._first is None:
            return None
        usual = (self._clock() - self._first) / done
        total = 0.0
        for phase, units in self._units.items():
            left = max(0, units - self._done[phase])
            if left == 0:
                continue
            total += left * self._per_unit.get(kind_of(phase), usual)
        return total


def kind_of(phase: str) -> str:
    """The phase's name without its numbers: phases of one kind have units of the same cost."""
    return re.sub(r"\s*\d+(\s*/\s*\d+)?", "", phase)


def clock_text(seconds: float) -> str:
    """1:05 or 2:03:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def metrics_text(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items())


class PlainProgress:
    """One line a phase, one for each message, and at most one every `LINE_EVERY_SECONDS` in between."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._left = TimeLeft(clock)
        self._units: dict[str, int] = {}
        self._phase = ""
        self._done = 0
        self._last_line = clock()

    def plan(self, phases: Sequence[tuple[str, int]]) -> None:
        self._units = dict(phases)
        self._left.plan(phases)

    def start(self, phase: str) -> None:
        self._left.start(phase)
        self._phase, self._done = phase, 0
        self._print(f"{phase} ({self._units[phase]} steps)" if phase in self._units else phase)

    def advance(self, units: int = 1, **metrics: float) -> None:
        self._done += units
        self._left.advance(units)
        if self._clock() - self._last_line < LINE_EVERY_SECONDS:
            return
        parts = [f"  {self._phase}: {self._done}/{self._units.get(self._phase, self._done)}"]
        if metrics:
            parts.append(metrics_text(metrics))
        left = self._left.seconds()
        if left is not None:
            parts.append(f"about {clock_text(left)} left")
        self._print("  ".join(parts))

    def message(self, text: str) -> None:
        self._print("  " + text)

    def close(self) -> None:
        self._stream.flush()

    def _print(self, line: str) -> None:
        self._last_line = self._clock()
        print(line, file=self._stream, flush=True)


class TerminalProgress:
    """A bar for the current phase with the time left of the whole run; messages scroll above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._left = TimeLeft()
        self._units: dict[str, int] = {}
        self._bars: Bars | None = None
        self._phases_begun = 0

    def plan(self, phases: Sequence[tuple[str, int]]) -> None:
        self._units = dict(phases)
        self._left.plan(phases)

    def start(self, phase: str) -> None:
        self._left.start(phase)
        self._phases_begun += 1
        bars = self._bars or self._open()
        for task in bars.task_ids:
            bars.remove_task(task)
        step = f"[{self._phases_begun}/{len(self._units)}] " if self._units else ""
        bars.add_task(step + phase, total=self._units.get(phase), metrics="", left="")

    def advance(self, units: int = 1, **metrics: float) -> None:
        self._left.advance(units)
        if self._bars is None or not self._bars.task_ids:
            return
        seconds = self._left.seconds()
        rest = "" if seconds is None else f"about {clock_text(seconds)} left"
        left = f"{clock_text(self._left.elapsed)} elapsed"
        if seconds is not None:
            left = rest if self._console.width < NARROW else f"{left}, {rest}"
        self._bars.update(self._bars.task_ids[0], advance=units, left=left, metrics=metrics_text(metrics))

    def message(self, text: str) -> None:
        self._console.print(text, markup=False)

    def close(self) -> None:
        if self._bars is not None:
            for task in self._bars.task_ids:
                self._bars.remove_task(task)
            self._bars.stop()
            self._bars = None

    def _open(self) -> Bars:
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}", markup=True),
            *([BarColumn(bar_width=24)] if self._console.width >= WIDE else []),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[left]}"),
            *([TextColumn("[cyan]{task.fields[metrics]}")] if self._console.width >= NARROW else []),
            console=self._console,
            transient=True,
        )
        self._bars.start()
        return self._bars
