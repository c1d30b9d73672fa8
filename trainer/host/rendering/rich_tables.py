"""Tables and texts for rich: columns that fit the console, texts that no terminal obeys."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from trainer.host.escaping import escape_lines, escape_text


def safe_text(value: object, style: str = "") -> Text:
    """Make a text from elsewhere safe: rich finds no markup in it, the terminal no command."""
    return Text(escape_text(value), style)


def safe_lines(value: object, style: str = "") -> Text:
    """Make a text of several lines safe, such as an error.

    >>> safe_lines("it does not fit:\\n  w\\x1b[2J").plain
    'it does not fit:\\n  w\\\\x1b[2J'
    """
    return Text(escape_lines(value), style)


@dataclasses.dataclass
class Column:
    """A column of a table."""

    head: str
    cells: list[Text]
    justify: Literal["left", "right"] = "left"
    priority: int = 0
    """If not all columns fit, those with the lowest priority are left out first."""
    fold_width: int | None = None
    """If room is scarce, longer cells are folded at this width; if None, they are cut."""


def make_table(columns: Sequence[Column], width: int, *, title: str = "") -> Table:
    """Make a table of the columns, from left to right, that fit in so many characters."""
    kept = list(columns)
    while len(kept) > 1 and sum(map(_column_width, kept)) + 2 * len(kept) > width:
        least = min(column.priority for column in kept)
        if least == max(column.priority for column in kept):
            break
        kept.remove([column for column in kept if column.priority == least][-1])
    table = Table(
        title=Text(title, "bold") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in kept:
        table.add_column(
            Text(escape_text(column.head)),
            justify=column.justify,
            overflow="ellipsis" if column.fold_width is None else "fold",
            no_wrap=column.fold_width is None,
        )
    for cells in zip(*(column.cells for column in kept), strict=True):
        table.add_row(*cells)
    return table


def make_key_value_table(rows: Sequence[tuple[str, object]], *, style: str = "dim") -> Table:
    """Make a table of names, in a style, and values."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style=style, overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(safe_text(name), value if isinstance(value, Text) else safe_text(value))
    return table


def _column_width(column: Column) -> int:
    widest = max([cell_len(escape_text(column.head)), *(cell.cell_len for cell in column.cells)])
    return widest if column.fold_width is None else min(widest, column.fold_width)
