"""What commands print: texts that a terminal does not obey, numbers, tables that fit, JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.host.escaping import escape_lines, escape_text

WIDE = 200
"""Characters of a line where it is no terminal that is written to."""

STYLES = {
    "running": "bold green",
    "stalled": "bold yellow",
    "finished": "cyan",
    "interrupted": "magenta",
    "failed": "bold red",
    "open": "",
    "claimed": "green",
    "done": "cyan",
}
"""Of the states of runs and of requests."""

UNITS = ((86400.0 * 2, 86400.0, "d"), (7200.0, 3600.0, "h"), (120.0, 60.0, "min"), (1.0, 1.0, "s"))
"""Of times: from so many seconds on, a unit's seconds, and its name."""


def make_console() -> Console:
    """Give the console to print on; into a file or a pipe it writes long lines.

    What stands in brackets or between colons is text: styles are given by `Text`.
    """
    console = Console(highlight=False, soft_wrap=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in console._environ:
        console.width = WIDE
    return console


def safe_text(value: object, style: str = "") -> Text:
    """Give a text from elsewhere for rich, which takes nothing in it for markup or a command."""
    return Text(escape_text(value), style)


def safe_lines(value: object, style: str = "") -> Text:
    """Give a text from elsewhere that has several lines, such as an error.

    >>> safe_lines("it does not fit:\\n  w\\x1b[2J").plain
    'it does not fit:\\n  w\\\\x1b[2J'
    """
    return Text(escape_lines(value), style)


def state_text(state: str) -> Text:
    """Give a state in its color."""
    return safe_text(state, STYLES.get(state, ""))


def format_duration(seconds: float) -> str:
    """Write a time, in seconds, in the unit that suits it.

    >>> [format_duration(seconds) for seconds in (0.0042, 0.5, 42, 300, 9000, 400_000)]
    ['4.2 ms', '500 ms', '42 s', '5 min', '2.5 h', '4.6 d']
    """
    for least, unit, name in UNITS:
        if seconds >= least:
            count = seconds / unit
            return f"{count:.2g} {name}" if count < 10 else f"{count:.0f} {name}"
    return f"{1000 * seconds:.3g} ms"


def format_age(seconds: float) -> str:
    """Write how long ago something was; clocks of machines may differ a little."""
    return f"{format_duration(seconds)} ago" if seconds >= 1 else "now"


def format_bytes(count: float) -> str:
    """Write a number of bytes.

    >>> format_bytes(512), format_bytes(2_500_000), format_bytes(3e9)
    ('512 B', '2.5 MB', '3.0 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def format_progress(epoch: int, epochs: int | None) -> str:
    """Write how far a run is: `7/20`."""
    return f"{epoch:,}" if epochs is None else f"{epoch:>{len(f'{epochs:,}')},}/{epochs:,}"


@dataclasses.dataclass
class Column:
    """A column of a table."""

    head: str
    cells: list[Text]
    justify: Literal["left", "right"] = "left"
    priority: int = 0
    """Where there is no room for all, those go first that matter the least."""
    fold_width: int | None = None
    """Cells longer than so many characters go on in the next line where room is scarce; where None
    they are cut."""


def make_table(columns: Sequence[Column], width: int, *, title: str = "") -> Table:
    """Make a table of the columns for which there is room.

    Args:
        columns: from left to right.
        width: of the console, in characters.
        title: above it.
    """
    kept = list(columns)
    while len(kept) > 1 and sum(map(_width, kept)) + 2 * len(kept) > width:
        least = min(column.priority for column in kept)
        if least == max(column.priority for column in kept):
            break
        kept.remove([column for column in kept if column.priority == least][-1])
    made = Table(
        title=Text(title, "bold") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in kept:
        made.add_column(
            Text(escape_text(column.head)),
            justify=column.justify,
            overflow="ellipsis" if column.fold_width is None else "fold",
            no_wrap=column.fold_width is None,
        )
    for cells in zip(*(column.cells for column in kept), strict=True):
        made.add_row(*cells)
    return made


def make_key_value_table(rows: Sequence[tuple[str, object]]) -> Table:
    """Make a list of names and values."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim", overflow="fold")
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(safe_text(name), value if isinstance(value, Text) else safe_text(value))
    return made


def print_json(data: Any) -> None:
    """Print JSON; a number that is not finite is null, for JSON knows none.

    >>> print_json({"loss": math.nan})
    {
      "loss": null
    }
    """
    json.dump(_finite(data), sys.stdout, indent=2, allow_nan=False)
    print()


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _width(column: Column) -> int:
    widest = max([cell_len(escape_text(column.head)), *(cell.cell_len for cell in column.cells)])
    return widest if column.fold_width is None else min(widest, column.fold_width)
