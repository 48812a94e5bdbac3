from __future__ import annotations

import io

from rich.console import Console

from finepruning.report.terminal import SEPARATOR, print_table
from finepruning.report.text import duration_text, percent_text, size_text


def shown(width: int, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=terminal, color_system=None)
    rows = [("features.0.conv", "conv2d", "123,456,789", "0.1000"), SEPARATOR, ("total", "", "1", "0.2")]
    print_table(console, ("layer", "op", "weights", "density"), rows, left=("op",), optional=("op",))
    return stream.getvalue()


def test_a_narrow_terminal_loses_optional_columns_not_digits() -> None:
    assert "conv2d" in shown(80, True)
    narrow = shown(45, True)
    assert "conv2d" not in narrow
    assert "123,456,789" in narrow
    assert "features.0.conv" in narrow


def test_texts() -> None:
    assert [size_text(v) for v in (None, 12, 999, 1500, 2_340_000, 5.5e9)] == [
        "-", "12 B", "999 B", "1.5 kB", "2.34 MB", "5.5 GB",
    ]  # fmt: skip
    assert percent_text(0.1234) == "12.3 %"
    assert percent_text(None) == "-"
    assert [duration_text(s) for s in (0.84, 42, 200, 7500)] == ["0.8 s", "42 s", "3 min 20 s", "2 h 5 min"]
