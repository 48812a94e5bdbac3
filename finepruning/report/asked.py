"""What a run was asked for, beside what it came to."""

from __future__ import annotations

from typing import Any

from finepruning.report.text import percent_text, size_text

DENSITY, BYTES = "target_density", "target_bytes"


def asked(report: dict[str, Any], name: str) -> float | None:
    """The value of the option ``name``, None where the run had another target."""
    target = report.get("target") or {"name": DENSITY, "asked": report["target_density"]}
    return float(target["asked"]) if target["name"] == name else None


def density_asked(report: dict[str, Any]) -> str:
    """ "asked for 10.00 %" or what decided instead."""
    density = asked(report, DENSITY)
    return "as the target allows" if density is None else f"asked for {percent_text(density, 2)}"


def size_asked(report: dict[str, Any]) -> str:
    """ "500 kB (499998 of 500000 bytes)" of a run that was asked for bytes, else the size alone."""
    limit = asked(report, BYTES)
    text = size_text(report["bytes_sparse"])
    return text if limit is None else f"{text} ({report['bytes_sparse']} of at most {limit:.0f} bytes)"
