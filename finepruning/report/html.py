"""report.html: the whole run in one file that needs nothing else, on a screen and on paper."""

from __future__ import annotations

from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from finepruning.report.asked import BYTES, accuracy_asked, asked, density_asked, latency_asked
from finepruning.report.html_figures import densities, pareto, rounds, sensitivity, training, trials
from finepruning.report.html_results import confusions, speed
from finepruning.report.markup import Html, heading, paragraph, table
from finepruning.report.text import beginning_text, density_text, duration_text, percent_text, size_text


def render_html(report: dict[str, Any], run_dir: Path, material: dict[str, Any]) -> str:
    """The page.

    Args:
        report: as `compress` returns it. run_dir: for the lines that load the model.
        material: what lies beside report.json: ``trials`` (lines of trials.jsonl), ``bench`` and
            ``sensitivity`` (results of these commands, or None) and ``pictures`` (index in the test split ->
            JPEG bytes).
    """
    sections = [
        ("accuracy", "Accuracy against density", pareto(report) + rounds(report)),
        ("layers", "Where the weights are left", densities(report)),
        ("sensitivity", "What each layer bears", sensitivity(material["sensitivity"])),
        ("trials", "What the search tried", trials(report, material["trials"])),
        ("training", "Training", training(report)),
        ("speed", "Speed and memory", speed(material["bench"], run_dir)),
        ("confusions", "What it confuses", confusions(report, material["pictures"])),
        ("use", "Use it", _usage(report, run_dir)),
        ("asked", "What was asked", _asked(report)),
    ]
    shown = [section for section in sections if section[2]]
    links = " ".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in shown)
    body = "".join(heading(title, anchor) + content for anchor, title, content in shown)
    page = f"{_top(report, material['bench'])}<nav>{links}</nav>{body}{_foot(report)}"
    page = page.replace(" %", "\N{NO-BREAK SPACE}%")
    style = resources.files("finepruning.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(report["name"])}</title><link rel="icon" href="data:,"><style>{style}</style></head>'
        f"<body><main>{page}</main></body></html>\n"
    )


def _top(report: dict[str, Any], bench: dict[str, Any] | None) -> str:
    change = 100 * (report["accuracy"] - report["dense_accuracy"])
    smaller = report["bytes_dense"] / max(1, report["bytes_sparse"])
    most = asked(report, BYTES)
    limit = "" if most is None else f", of at most {size_text(most)}"
    tiles = [
        (
            percent_text(report["accuracy"]),
            "test accuracy",
            f"dense {percent_text(report['dense_accuracy'])}, {change:+.1f} points",
        ),
        (
            percent_text(report["density"], 2),
            "of the weights left",
            density_asked(report),
        ),
        (
            size_text(report["bytes_sparse"]),
            f"on disk{limit}",
            f"dense {size_text(report['bytes_dense'])}, {smaller:.1f}x",
        ),
    ]
    robust = report.get("robust")
    if robust is not None:
        attacked = f"of test images changed by {robust['epsilon']:g} of 255"
        dense = f"dense {percent_text(robust['dense_accuracy'])}"
        tiles.append((percent_text(robust["accuracy"]), attacked, dense))
    drop = accuracy_asked(report)
    if drop is not None:
        reached, _, points = drop[1].partition(" (")
        tiles.append((reached, f"validation accuracy, dense {drop[0]}", points.rstrip(")")))
    latency = latency_asked(report)
    if latency is not None:
        dense, reached, where = latency
        tiles.append(
            (reached.partition(" of ")[0], f"{where}, of {reached.partition(' of ')[2]}", f"dense {dense}")
        )
    best = next((row for row in (bench or {}).get("rows", []) if row.get("speedup")), None)
    if best is not None:
        ratio = best["speedup"]
        word = f"{ratio:.2f}x faster" if ratio >= 1 else f"{1 / ratio:.2f}x slower"
        tiles.append(
            (
                f"{best['median_ms']:.3g} ms",
                f"for a batch of {best['batch']}",
                f"{word} than the best dense",
            )
        )
    figures = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(name)}</span><span>{escape(more)}</span></div>"
        for value, name, more in tiles
    )
    model, data = (
        report["model"] or "The built-in network",
        Path(str(report["data"] or "built-in textures")).name,
    )
    images = report["images"]
    return (
        f"<h1>{escape(model)} on {escape(data)}</h1>"
        + paragraph(
            f"Run {escape(report['name'])}, {escape(report['date'][:10])}. {len(report['classes'])} classes; "
            f"{images['train']} images for training, {images['validation']} for validation and "
            f"{images['test']} for the test, which were looked at once, at the end. {beginning_text(report)}",
            "soft",
        )
        + f'<div class="figures">{figures}</div>'
    )


def _usage(report: dict[str, Any], run_dir: Path) -> str:
    model = run_dir / "model"
    code = (
        "from PIL import Image\n"
        "import finepruning\n"
        "from finepruning.predict import preprocessing_of\n\n"
        f'model = finepruning.SparseModel.from_pretrained("{model}")\n'
        "prepare = preprocessing_of(model)\n"
        'logits = model(prepare(Image.open("image.jpg")).unsqueeze(0))\n'
        "print(model.classes[logits.argmax(1)])\n"
    )
    shell = (
        f"finepruning predict {run_dir} image.jpg\n"
        f"finepruning bench {run_dir}\n"
        f"finepruning export {run_dir} --to onnx\n"
    )
    return f"<pre>{escape(code)}</pre><pre>{escape(shell)}</pre>"


def _asked(report: dict[str, Any]) -> str:
    options = [(name, _value(value)) for name, value in sorted(report["config"].items())]
    where = [
        (name, _value(value))
        for name, value in [
            *((n, v) for n, v in report["environment"].items() if not isinstance(v, dict)),
            *report["environment"].get("packages", {}).items(),
        ]
    ]
    seconds = [(name.replace("_", " "), duration_text(value)) for name, value in report["seconds"].items()]

    def plain(rows: list[tuple[str, str]]) -> str:
        return table(
            ("", ""), [(name, Html(f"<code>{escape(value)}</code>")) for name, value in rows], left=(0, 1)
        )

    return (
        f'<div class="columns">{plain(options)}</div>'
        f'<div class="pair"><div><h3>Time</h3>{table(("", ""), seconds)}</div>'
        f"<div><h3>Where it ran</h3>{plain(where)}</div></div>"
    )


def _value(value: Any) -> str:
    return "-" if value is None else str(value)


def _foot(report: dict[str, Any]) -> str:
    version = report["environment"].get("packages", {}).get("finepruning", "")
    return (
        f"<footer>Density is kept weights over all weights of convolution and fully connected layers; "
        f"here {density_text(report['density'])}. Written by finepruning {escape(version)}.</footer>"
    )
