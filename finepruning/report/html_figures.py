"""The report's drawings of a run: the Pareto plot, densities, trials and training curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from finepruning.report.charts import Plot, Point, linear_axis, log_axis
from finepruning.report.markdown import best_by_density
from finepruning.report.markup import Html, bar, figure, key, paragraph, table
from finepruning.report.text import density_text, percent_text, shape_text

_KINDS = {
    "trial": ("pale", 3.5, "trial, before fine-tuning"),
    "round": ("blue", 5.5, "round, after fine-tuning"),
    "dense": ("ink", 6.5, "dense"),
    "final": ("orange", 7.5, "final"),
}


def pareto(report: dict[str, Any]) -> str:
    """Validation accuracy (or loss, where there is none) against density."""
    points = report["pareto"]
    measure = "accuracy" if any(p.get("accuracy") is not None for p in points) else "loss"
    points = [p for p in points if p.get(measure) is not None]
    if not points:
        return ""
    x = log_axis([p["density"] for p in points], lambda v: f"{100 * v:g} %", "weights kept")
    values = [p[measure] for p in points]
    if measure == "accuracy":
        y = linear_axis(values, lambda v: f"{100 * v:.0f} %", "validation accuracy", least=0, most=1)
    else:
        y = log_axis(values, lambda v: f"{v:g}", "validation loss")
    plot = Plot(x, y, height=360)
    kept = [p for p in points if p["kind"] != "trial"]
    plot.line([(p["density"], p[measure]) for p in best_by_density(kept, measure)], "blue")
    for kind, (colour, radius, _) in _KINDS.items():
        for p in (p for p in points if p["kind"] == kind):
            text = percent_text(p[measure]) if measure == "accuracy" else f"{p[measure]:.4f}"
            title = f"{kind}: density {density_text(p['density'])}, {measure} {text}"
            plot.dot((p["density"], p[measure]), colour, title, radius)
            if kind in ("dense", "final"):
                plot.label((p["density"], p[measure]), text)
    present = {p["kind"] for p in points}
    legend = "".join(key(colour, text) for kind, (colour, _, text) in _KINDS.items() if kind in present)
    return figure(plot.render(f"{measure} against density"), legend)


def rounds(report: dict[str, Any]) -> str:
    """One row a round."""
    entries = report["rounds"]
    if not entries:
        return ""
    rows = [
        (
            entry["round"],
            density_text(entry["density"]),
            entry["trials"],
            _loss(entry.get("baseline_loss")),
            _loss(entry.get("best_loss")),
            percent_text(entry["validation_accuracy"]),
            f"{entry['spliced']:,}" if "spliced" in entry else "-",
        )
        for entry in entries
    ]
    head = (
        "round",
        "density",
        "trials",
        "loss, global magnitude",
        "loss, best found",
        "accuracy after",
        "spliced",
    )
    note = (
        "Losses are those of the network just pruned, before it is fine-tuned again; accuracy is measured "
        "after. All on validation images. Spliced counts weights that were dropped and came back."
    )
    return table(head, rows) + paragraph(note, "soft")


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def densities(report: dict[str, Any]) -> str:
    """Every layer's density as a bar."""
    layers = report["layers"]
    if not layers:
        return ""
    rows: list[tuple[str, ...]] = [
        (
            Html(f"<code>{escape(layer['name'])}</code>"),
            shape_text(layer["shape"]),
            f"{layer['size']:,}",
            f"{layer['nnz']:,}",
            percent_text(layer["density"]),
            Html(bar(layer["density"], "blue")),
        )
        for layer in layers
    ]
    size, nnz = sum(layer["size"] for layer in layers), sum(layer["nnz"] for layer in layers)
    share = nnz / size if size else 0.0
    rows.append(("all layers", "", f"{size:,}", f"{nnz:,}", percent_text(share), Html(bar(share, "blue"))))
    kinds = [""] * len(layers) + ["sum"]
    return table(
        ("layer", "shape", "weights", "kept", "density", ""), rows, left=(0, 1), tracks=(5,), kinds=kinds
    )


def trials(report: dict[str, Any], found: Sequence[dict[str, Any]]) -> str:
    """The objective of every trial in order, round by round, and the best so far."""
    if not found:
        return ""
    x = linear_axis([0.5, len(found) + 0.5], lambda v: f"{v:.0f}", "trial", tight=True)
    values = [trial["objective"] for trial in found]
    if min(values) > 0:
        y = log_axis(values, lambda v: f"{v:.3g}")
    else:
        y = linear_axis(values, lambda v: f"{v:.3g}")
    plot = Plot(x, y)
    budgets = {entry["round"]: entry["budget"] for entry in report["rounds"]}
    best = math.inf
    steps: list[Point] = []
    previous = None
    for number, trial in enumerate(found, start=1):
        if trial["round"] != previous:
            plot.line(steps, "blue")
            best, steps, previous = math.inf, [], trial["round"]
            at = f" at {percent_text(budgets[previous])}" if previous in budgets else ""
            plot.divider(number - 0.5, f"round {previous}{at}")
        if steps and trial["objective"] < best:
            steps.append((number, best))
        best = min(best, trial["objective"])
        steps.append((number, best))
        title = (
            f"round {trial['round']}, trial {trial['index'] + 1} ({trial['kind']}): {trial['objective']:.4f}"
        )
        colour = "pale" if trial["kind"] in _PROPOSED else "hollow"
        plot.dot((number, trial["objective"]), colour, title, 4 if len(found) <= 60 else 2.5)
    plot.line(steps, "blue")
    legend = key("hollow", "starting point (global magnitude, previous round, other rules)")
    legend += key("pale", "proposal of the search") + key("blue", "best so far")
    note = "What the search minimises, before fine-tuning: lower is better.<br>"
    return figure(plot.render("objective of every trial"), note + legend)


_PROPOSED = ("search", "random")


def training(report: dict[str, Any]) -> str:
    """Loss and accuracy after every epoch, side by side."""
    history = report["history"]
    if len(history) < 2:
        return ""
    epochs = range(1, len(history) + 1)
    x = linear_axis([0.5, len(history) + 0.5], lambda v: f"{v:.0f}", "epoch", tight=True)
    losses = [entry[name] for entry in history for name in ("train_loss", "validation_loss")]
    positive = [value for value in losses if value > 0 and math.isfinite(value)]
    loss = Plot(x, log_axis(positive, lambda v: f"{v:.3g}", ""), width=420, height=260)
    shares = [entry["validation_accuracy"] for entry in history]
    accuracy = Plot(
        x, linear_axis(shares, lambda v: f"{100 * v:.0f} %", "", least=0, most=1), width=420, height=260
    )
    previous = None
    rounds_made = max(entry["round"] for entry in history)
    for epoch, entry in zip(epochs, history, strict=True):
        place = (entry["phase"], entry["round"])
        if place != previous:
            name = _phase_name(entry, rounds_made)
            for plot in (loss, accuracy):
                plot.divider(epoch - 0.5, name)
            previous = place
    loss.line([(e, h["train_loss"]) for e, h in zip(epochs, history, strict=True)], "pale")
    loss.line([(e, h["validation_loss"]) for e, h in zip(epochs, history, strict=True)], "blue")
    accuracy.line([(e, share) for e, share in zip(epochs, shares, strict=True)], "blue")
    for epoch, entry in zip(epochs, history, strict=True):
        share, density = entry["validation_accuracy"], entry["density"]
        title = f"epoch {epoch}: accuracy {percent_text(share)}, density {density_text(density)}"
        accuracy.dot((epoch, share), "blue", title, 3 if len(history) <= 30 else 2)
    left = figure(loss.render("loss by epoch"), key("pale", "training loss") + key("blue", "validation loss"))
    right = figure(accuracy.render("accuracy by epoch"), key("blue", "validation accuracy"))
    return f'<div class="pair">{left}{right}</div>' + paragraph(
        "Vertical lines are the beginnings of phases; each round begins with a cut to its density.", "soft"
    )


def _phase_name(entry: dict[str, Any], rounds_made: int) -> str:
    """Caption of a phase: rounds by number, or all under one name where they are too many for that."""
    if entry["phase"] in ("dense", "final"):
        return str(entry["phase"])
    if rounds_made <= 6:
        return str(entry["round"])
    return f"{rounds_made} rounds" if entry["round"] == 1 else ""


def sensitivity(content: dict[str, Any] | None) -> str:
    """Accuracy with each layer pruned alone, where `finepruning sensitivity` has been run."""
    if content is None:
        return ""
    whole = content["accuracy"]
    worst = max(0.05, *(whole - share for layer in content["layers"] for share in layer["accuracy"]))
    rows = [
        (
            Html(f"<code>{escape(layer['name'])}</code>"),
            f"{layer['size']:,}",
            *(_lost(share, (whole - share) / worst) for share in layer["accuracy"]),
        )
        for layer in content["layers"]
    ]
    head = ("layer", "weights", *(f"at {100 * density:g} %" for density in content["densities"]))
    note = (
        f"Accuracy on {content['images']} validation images with one layer of the dense network pruned and "
        f"the others whole, without fine-tuning; {percent_text(whole)} with nothing pruned."
    )
    return table(head, rows) + paragraph(note, "soft")


def _lost(accuracy: float, share: float) -> Html:
    strength = round(55 * min(1.0, max(0.0, share)))
    return Html(
        f'<span class="heat" style="background:color-mix(in srgb, var(--orange) {strength}%, transparent)">'
        f"{percent_text(accuracy)}</span>"
    )
