"""A run's times as a table: what was done, nested in what it was part of."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import NamedTuple

from trainer.host.amounts import format_duration
from trainer.host.escaping import escape_text, escape_unencodable
from trainer.host.rendering.plain_tables import align_columns
from trainer.host.time_spans import SpanPath

Sums = dict[SpanPath, tuple[int, int]]
"""Path of what was done: how often, and nanoseconds in all. What other threads did is nested in
`("thread", its name)`."""

SHOWN = 0.001
"""Share of the run from which on a row is shown."""

COLUMNS = ("share", "total", "own", "count", "mean")


class TimeRow(NamedTuple):
    """Something that was done, a number of times."""

    path: SpanPath
    times: int
    """0 for threads, and for what began before the measurement and is not over."""
    seconds: float
    own: float | None
    """Seconds that nothing nested in it explains; None if nothing is nested in it."""

    @property
    def label(self) -> str:
        """What was done, safe for a terminal, indented by its depth."""
        what = " ".join(self.path[-1]).strip() if self.path else "run"
        return "  " * len(self.path) + escape_text(what)


def build_rows(sums: Sums, seconds: float) -> list[TimeRow]:
    """Arrange what was done as a tree, the longest first, other threads last.

    Args:
        sums: of everything that was done.
        seconds: that the run took: the first row's.

    >>> wait, epoch = ("wait", "train"), ("epoch", "")
    >>> for row in build_rows({(epoch,): (2, 8 * 10**9), (epoch, wait): (2, 6 * 10**9)}, 10.0):
    ...     print(f"{row.label:<14}{row.seconds} {row.own}")
    run           10.0 2.0
      epoch       8.0 2.0
        wait train6.0 None
    """
    children: dict[SpanPath, list[SpanPath]] = {}
    for path in sums:
        for depth in range(len(path), 0, -1):
            siblings = children.setdefault(path[: depth - 1], [])
            if path[:depth] in siblings:
                break
            siblings.append(path[:depth])

    def total(path: SpanPath) -> float:
        if not path:
            return seconds
        return sums[path][1] / 1e9 if path in sums else sum(map(total, children[path]))

    def order(path: SpanPath) -> tuple[bool, float]:
        return path[0][0] == "thread", -total(path)

    def walk(path: SpanPath) -> Iterator[TimeRow]:
        inner = sorted(children.get(path, ()), key=order)
        explained = sum(total(child) for child in inner if child[0][0] != "thread" or path)
        count = sums.get(path, (0, 0))[0] if path else 1
        own = max(total(path) - explained, 0.0) if inner and count else None
        yield TimeRow(path, count, total(path), own)
        for child in inner:
            yield from walk(child)

    return list(walk(()))


def print_times(sums: Sums, seconds: float) -> None:
    """Print the rows of at least a thousandth of the run: with rich on a terminal, if installed."""
    rows = build_rows(sums, seconds)
    shown = [row for row in rows if row.seconds >= SHOWN * seconds]
    title = f"time of {_format(seconds)}"
    if len(shown) < len(rows):
        title += f"; what took less than {SHOWN:.1%} is left out"
    cells = [_cells(row, seconds) for row in shown]
    if not _print_with_rich(title, cells):
        text = align_columns([("what", *COLUMNS), *cells], right=range(1, 6))
        print(escape_unencodable(f"{title}\n{text}", sys.stdout.encoding), flush=True)


def _print_with_rich(title: str, cells: list[tuple[str, ...]]) -> bool:
    """Print on a terminal, and return whether there is one; a file may have lines of any length."""
    try:
        import rich
    except ImportError:
        return False
    console = rich.get_console()
    if not console.is_terminal:
        return False
    from trainer.host.rendering.rich_tables import Column, make_table, safe_text

    labels = [safe_text(escape_unencodable(label, console.encoding)) for label, *_ in cells]
    columns = [Column("what", labels, priority=9, fold_width=30)]
    for number, name in enumerate(COLUMNS, 1):
        style = "" if name in ("share", "total") else "dim"
        figures = [safe_text(row[number], style) for row in cells]
        columns.append(Column(name, figures, "right", 9 - number))
    console.print(make_table(columns, console.width, title=title))
    return True


_format = functools.partial(format_duration, digits=3)


def _cells(row: TimeRow, seconds: float) -> tuple[str, ...]:
    return (
        row.label,
        f"{row.seconds / seconds:.1%}",
        _format(row.seconds),
        "" if row.own is None else _format(row.own),
        f"{row.times:,}" if row.times else "",
        _format(row.seconds / row.times) if row.times else "",
    )
