"""Small pieces of HTML that the report's sections are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


def heading(text: str, anchor: str) -> str:
    return f'<h2 id="{anchor}">{escape(text)}</h2>'


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of ready HTML."""
    return f"<p{_class(kind)}>{text}</p>"


def figure(content: str, caption: str = "") -> str:
    """A drawing with ready HTML below it."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{content}{below}</figure>"


def key(kind: str, text: str) -> str:
    """One entry of a legend; ``kind`` is a colour of style.css."""
    return f'<span class="key"><i class="{kind}"></i>{escape(text)}</span>'


def bar(share: float, kind: str = "") -> str:
    """A horizontal bar over ``share`` of its cell."""
    return (
        f'<span class="{f"fill {kind}".strip()}" style="width:{100 * max(0.0, min(1.0, share)):.2f}%"></span>'
    )


class Html(str):
    """Text that is HTML already and must not be escaped."""


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    left: Sequence[int] = (0,),
    tracks: Sequence[int] = (),
    kinds: Sequence[str] = (),
) -> str:
    """A table; cells are escaped unless they are `Html`.

    Args:
        head: column names. rows: one cell a column.
        left: columns of text; the others are numbers to the right.
        tracks: columns that hold bars. kinds: the class of each row, if any.
    """
    align = ["" if i in left or i in tracks else "number" for i in range(len(head))]
    names = "".join(f"<th{_class(a)}>{escape(name)}</th>" for name, a in zip(head, align, strict=True))
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(
            f"<td{_class('track' if i in tracks else align[i])}>{_cell(cell)}</td>"
            for i, cell in enumerate(row)
        )
        lines.append(f"<tr{_class(kinds[number] if number < len(kinds) else '')}>{cells}</tr>")
    top = f"<thead><tr>{names}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def _cell(cell: Any) -> str:
    return str(cell) if isinstance(cell, Html) else escape(str(cell))


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
