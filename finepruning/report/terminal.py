"""Tables on a terminal: they give up their least important columns before they cut a number."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

SEPARATOR = None
"""A row that stands for a thin rule."""

_UNLIMITED = 1000  # columns; output that is no terminal is never cut

Row = Sequence[str | Text] | None


def make_console() -> Console:
    """Standard output; as wide as the terminal, or without limit where there is none."""
    console = Console(highlight=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, emoji=False, width=_UNLIMITED)


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Row],
    *,
    left: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """Print rows under bold column names.

    Args:
        console: where to. columns: names, the first one's cells to the left and the others' to the right.
        rows: one cell a column, or `SEPARATOR`.
        left: further columns whose cells go to the left.
        optional: columns that may go where the terminal is too narrow, the first one first.
    """
    shown = list(range(len(columns)))
    droppable = [columns.index(name) for name in optional]
    while (table := _table(columns, rows, left, shown)) and droppable:
        unlimited = console.options.update(width=_UNLIMITED)
        if Measurement.get(console, unlimited, table).maximum <= console.width:
            break
        shown.remove(droppable.pop(0))
    console.print(table, soft_wrap=not console.is_terminal)


def _table(columns: Sequence[str], rows: Sequence[Row], left: Sequence[str], shown: Sequence[int]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for index in shown:
        justify = "left" if index == 0 or columns[index] in left else "right"
        table.add_column(columns[index], justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*(_cell(row[index]) for index in shown))
    return table


def _cell(cell: str | Text) -> Text:
    return Text(cell) if isinstance(cell, str) else cell
