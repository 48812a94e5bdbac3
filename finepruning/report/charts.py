"""Charts as inline SVG: no script, no font or style from elsewhere; colours are classes of style.css."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 34, 42  # room for ticks and titles, in pixels


@dataclass(frozen=True)
class Axis:
    """From data to a share of the axis: ``low`` is 0, ``high`` is 1."""

    low: float
    high: float
    ticks: tuple[float, ...]
    text: Callable[[float], str]
    title: str = ""
    log: bool = False

    def share(self, value: float) -> float:
        if self.log:
            value = max(value, self.low * 1e-3)
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(
    values: Iterable[float],
    text: Callable[[float], str],
    title: str = "",
    *,
    least: float | None = None,
    most: float | None = None,
    tight: bool = False,
) -> Axis:
    """An axis around ``values``; it ends at round numbers inside ``least`` and ``most``, or, ``tight``, at
    the outermost values."""
    found = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(found), max(found)
    if high - low < 1e-9:
        low, high = low - max(abs(low), 1e-3) * 0.1, high + max(abs(high), 1e-3) * 0.1
    step = _round_step((high - low) / 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [number * step for number in range(first, last + 1)]
    if tight:
        ticks = [tick for tick in ticks if low <= tick <= high]
        return Axis(low, high, tuple(ticks), text, title)
    if least is not None:
        ticks = [tick for tick in ticks if tick >= least - 1e-12]
    if most is not None:
        ticks = [tick for tick in ticks if tick <= most + 1e-12]
    low = min(low, ticks[0]) if ticks else low
    high = max(high, ticks[-1]) if ticks else high
    return Axis(low, high, tuple(ticks), text, title)


def log_axis(values: Iterable[float], text: Callable[[float], str], title: str = "") -> Axis:
    """A logarithmic axis around positive ``values``, with ticks at 1, 2 and 5 times powers of ten."""
    found = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
    low, high = min(found) / 1.15, max(found) * 1.15
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high]
    if len(ticks) > 8:
        ticks = [10.0**d for d in decades if low <= 10.0**d <= high]
    return Axis(low, high, tuple(ticks), text, title, log=True)


def _round_step(step: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if step <= m * power * 1.0001)


class Plot:
    """Marks over two axes; `render` gives the SVG."""

    def __init__(self, x: Axis, y: Axis, *, width: int = 720, height: int = 320) -> None:
        self.x, self.y, self.width, self.height = x, y, width, height
        self._marks: list[str] = []
        self._captioned = 0.0  # pixels, up to where the captions of dividers reach

    def at(self, point: Point) -> Point:
        """Data to pixels."""
        across = self.width - LEFT - RIGHT
        down = self.height - TOP - BOTTOM
        return LEFT + across * self.x.share(point[0]), TOP + down * (1 - self.y.share(point[1]))

    def line(self, points: Sequence[Point], kind: str) -> None:
        if len(points) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self.at, points))
            self._marks.append(f'<polyline class="line {kind}" points="{path}"/>')

    def dot(self, point: Point, kind: str, title: str, radius: float = 4) -> None:
        x, y = self.at(point)
        self._marks.append(
            f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}">'
            f"<title>{escape(title)}</title></circle>"
        )

    def label(self, point: Point, text: str, *, above: float = 12, kind: str = "value") -> None:
        """Text centred ``above`` pixels over a point, kept inside the drawing."""
        x, y = self.at(point)
        half = 3.6 * len(text)
        x = min(max(x, LEFT + half), self.width - half)
        self._marks.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y - above:.1f}" text-anchor="middle">{escape(text)}</text>'
        )

    def divider(self, x: float, text: str = "") -> None:
        """A vertical rule at data ``x``, with a caption to its right at the top where there is room."""
        position = self.at((x, self.y.low))[0]
        bottom = self.height - BOTTOM
        self._marks.append(
            f'<line class="rule" x1="{position:.1f}" x2="{position:.1f}" y1="{TOP - 8}" y2="{bottom}"/>'
        )
        end = position + 8 + 6.2 * len(text)
        if text and position >= self._captioned and end <= self.width + 8:
            self._captioned = end
            self._marks.append(
                f'<text class="tick" x="{position + 4:.1f}" y="{TOP - 10}">{escape(text)}</text>'
            )

    def render(self, description: str) -> str:
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(description)}">{"".join([*self._frame(), *self._marks])}</svg>'
        )

    def _frame(self) -> list[str]:
        right, bottom = self.width - RIGHT, self.height - BOTTOM
        parts = []
        for tick in self.y.ticks:
            y = self.at((self.x.low, tick))[1]
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(
                f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
                f"{escape(self.y.text(tick))}</text>"
            )
        for tick in self.x.ticks:
            x = self.at((tick, self.y.low))[0]
            parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">'
                f"{escape(self.x.text(tick))}</text>"
            )
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        if self.x.title:
            parts.append(
                f'<text class="name" x="{(LEFT + right) / 2:.1f}" y="{self.height - 6}" '
                f'text-anchor="middle">{escape(self.x.title)}</text>'
            )
        if self.y.title:
            parts.append(f'<text class="name" x="{LEFT}" y="{TOP - 20}">{escape(self.y.title)}</text>')
        return parts


def heatmap(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """A confusion matrix: rows are true classes, columns answers; off the diagonal in the warning colour.

    Args:
        counts: [n][n] images. names: of the n classes.
    """
    size = len(names)
    cell = 34 if size <= 12 else 26 if size <= 25 else max(6, 640 // size)
    font = min(12, cell)
    longest = max(len(name) for name in names)
    margin = min(200, 10 + round(0.56 * font * longest))
    edge = margin + size * cell
    parts = []
    for row, line in enumerate(counts):
        total = max(1, sum(line))
        y = margin + row * cell
        parts.append(
            f'<text class="tick" style="font-size:{font}px" x="{margin - 6}" '
            f'y="{y + cell / 2 + font / 3:.1f}" '
            f'text-anchor="end">{escape(names[row])}</text>'
        )
        x, base = margin + row * cell + cell / 2 + font / 3, margin - 6
        parts.append(
            f'<text class="tick" style="font-size:{font}px" x="{x:.1f}" y="{base}" '
            f'transform="rotate(-90 {x:.1f} {base})">{escape(names[row])}</text>'
        )
        for column, count in enumerate(line):
            if count:
                parts.append(_cell(margin + column * cell, y, cell, count, total, row, column, names))
    frame = size * cell
    return (
        f'<svg class="matrix" viewBox="0 0 {edge + 2} {edge + 2}" width="{edge + 2}" role="img" '
        f'aria-label="confusion matrix"><rect class="field" x="{margin}" y="{margin}" width="{frame}" '
        f'height="{frame}"/>{"".join(parts)}</svg>'
    )


def _cell(
    x: int, y: int, side: int, count: int, total: int, row: int, column: int, names: Sequence[str]
) -> str:
    share = count / total
    kind = "right" if row == column else "wrong"
    title = f"{names[row]} taken for {names[column]}: {count} of {total}"
    strength = 0.15 + 0.85 * share if row == column else min(1.0, 0.35 + 1.3 * share)
    text = ""
    if side >= 20:
        over = " over" if strength > 0.55 else ""
        text = (
            f'<text class="count{over}" x="{x + side / 2}" y="{y + side / 2 + 4}" text-anchor="middle">'
            f"{count}</text>"
        )
    return (
        f'<g><rect class="{kind}" x="{x}" y="{y}" width="{side - 1}" height="{side - 1}" '
        f'fill-opacity="{strength:.2f}"><title>{escape(title)}</title></rect>{text}</g>'
    )
