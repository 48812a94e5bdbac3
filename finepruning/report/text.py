"""How numbers read in tables: sizes, shares, times."""

from __future__ import annotations

from typing import Any


def size_text(count: float | None) -> str:
    """1.2 MB, in powers of ten as files are sold; "-" when unknown."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def percent_text(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def density_text(density: float | None) -> str:
    return "-" if density is None else f"{density:.4f}"


def duration_text(seconds: float) -> str:
    """0.8 s, 42 s, 3 min 20 s or 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def shape_text(shape: tuple[int, ...] | list[int]) -> str:
    return "x".join(str(extent) for extent in shape)


def beginning_text(report: dict[str, Any]) -> str:
    """A sentence on the run that this one started from, or nothing."""
    start = report.get("from_run")
    if start is None:
        return ""
    return (
        f"Started from {start['name']} at density {density_text(start['density'])} with "
        f"{percent_text(start['accuracy'])} test accuracy."
    )
