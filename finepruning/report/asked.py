"""What a run was asked for, beside what it came to."""

from __future__ import annotations

from typing import Any

from finepruning.report.text import percent_text, size_text

DENSITY, BYTES, LATENCY = "target_density", "target_bytes", "target_latency"
DROP = "max_accuracy_drop"


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


def latency_asked(report: dict[str, Any]) -> tuple[str, str, str] | None:
    """What was measured, dense and compressed, and how, of a run that was asked for milliseconds."""
    limit = asked(report, LATENCY)
    if limit is None:
        return None
    found = report["target"]
    where = found["device"]
    if where == "cpu":
        where += f", {found['threads']} thread{'s' * (found['threads'] != 1)}"
    return (
        f"{found['dense']:.3g} ms",
        f"{found['reached']:.3g} ms of at most {limit:.3g} ms",
        f"batch {found['batch']}, {where}",
    )


def accuracy_asked(report: dict[str, Any]) -> tuple[str, str] | None:
    """Validation accuracy, dense and compressed, of a run that was asked to keep it."""
    limit = asked(report, DROP)
    if limit is None:
        return None
    found = report["target"]
    reached, change = percent_text(found["validation_accuracy"]), f"{0.0 - found['reached']:+.1f}"
    return (
        percent_text(found["dense_validation_accuracy"]),
        f"{reached} ({change} points, {limit:g} may be lost)",
    )
