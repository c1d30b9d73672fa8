"""How the times of a run look: a table of what was done, and within it of what that took."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

from trainer.host.escaping import escape_text
from trainer.host.time_spans import Place

Sums = dict[Place, tuple[int, int]]
"""What was done, within what: how often, and nanoseconds in all. What other threads did lies within
`("thread", its name)`."""

SHOWN = 0.001
"""Share of the run from which on a row is shown."""

COLUMNS = ("share", "total", "own", "count", "mean")


class TimeRow(NamedTuple):
    """Something that was done, a number of times."""

    path: Place
    times: int
    """0 of what was under way before anyone listened, and is yet, and of threads."""
    seconds: float
    own: float | None
    """Seconds that nothing within it accounts for; None where nothing is within it."""

    @property
    def label(self) -> str:
        """What it was, as a terminal may show it, indented by what it was within."""
        return "  " * len(self.path) + escape_text(
            " ".join(self.path[-1]).strip() if self.path else "run"
        )


def build_rows(sums: Sums, seconds: float) -> list[TimeRow]:
    """Arrange what was done as a tree, the longest first, other threads last.

    Args:
        sums: of all that was done.
        seconds: that the run took: the first row's.

    >>> wait, epoch = ("wait", "train"), ("epoch", "")
    >>> for row in build_rows({(epoch,): (2, 8 * 10**9), (epoch, wait): (2, 6 * 10**9)}, 10.0):
    ...     print(f"{row.label:<14}{row.seconds} {row.own}")
    run           10.0 2.0
      epoch       8.0 2.0
        wait train6.0 None
    """
    within: dict[Place, list[Place]] = {}
    for path in sums:
        for depth in range(len(path), 0, -1):
            inner = within.setdefault(path[: depth - 1], [])
            if path[:depth] in inner:
                break
            inner.append(path[:depth])

    def total(path: Place) -> float:
        if not path:
            return seconds
        return sums[path][1] / 1e9 if path in sums else sum(map(total, within[path]))

    def place(path: Place) -> tuple[bool, float]:
        return path[0][0] == "thread", -total(path)

    def tree(path: Place) -> Iterator[TimeRow]:
        inner = sorted(within.get(path, ()), key=place)
        taken = sum(total(one) for one in inner if one[0][0] != "thread" or path)
        times = sums.get(path, (0, 0))[0] if path else 1
        bare = not inner or not times
        yield TimeRow(path, times, total(path), None if bare else max(total(path) - taken, 0.0))
        for one in inner:
            yield from tree(one)

    return list(tree(()))


def print_times(sums: Sums, seconds: float) -> None:
    """Print the rows that take a thousandth of the run: by rich on a terminal, if it is there."""
    found = build_rows(sums, seconds)
    chosen = [row for row in found if row.seconds >= SHOWN * seconds]
    title = f"time of {format_seconds(seconds)}"
    if len(chosen) < len(found):
        title += f"; what took less than {SHOWN:.1%} is left out"
    cells = [_cells(row, seconds) for row in chosen]
    if not _styled(title, cells):
        print(format_plain_table(title, cells), flush=True)


def _styled(title: str, cells: list[tuple[str, ...]]) -> bool:
    """Print a table for people; elsewhere lines may be as long as they are."""
    try:
        import rich
    except ImportError:
        return False
    console = rich.get_console()
    if not console.is_terminal:
        return False
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("what", overflow="fold")
    for name in COLUMNS:
        dim = "" if name in ("share", "total") else "dim"
        table.add_column(name, justify="right", no_wrap=True, style=dim)
    for label, *figures in cells:
        table.add_row(Text(escape_unencodable(label, console.encoding)), *figures)
    console.print(table)
    return True


def format_plain_table(title: str, cells: list[tuple[str, ...]]) -> str:
    """Lay a table out without rich.

    >>> print(format_plain_table("time of 2 s", [("run", "100.0%", "2.00 s", "", "1", "2.00 s")]))
    time of 2 s
    what   share   total  own  count    mean
    run   100.0%  2.00 s           1  2.00 s
    """
    lines = [("what", *COLUMNS), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
    return escape_unencodable(f"{title}\n{text}", sys.stdout.encoding)


def format_seconds(seconds: float) -> str:
    """Write a time with three digits.

    >>> [format_seconds(seconds) for seconds in (7265.2, 12.34, 0.99999, 0.00456, 7.8e-6, 0.0)]
    ['7,265 s', '12.3 s', '1.00 s', '4.56 ms', '7.80 us', '0.00 us']
    """
    units = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))
    unit, size = next((one for one in units if seconds >= 0.9995 * one[1]), units[-1])
    value = seconds / size
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f} {unit}"


def escape_unencodable(text: str, encoding: str | None) -> str:
    """Escape what the file behind a console cannot hold."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _cells(row: TimeRow, seconds: float) -> tuple[str, ...]:
    return (
        row.label,
        f"{row.seconds / seconds:.1%}",
        format_seconds(row.seconds),
        "" if row.own is None else format_seconds(row.own),
        f"{row.times:,}" if row.times else "",
        format_seconds(row.seconds / row.times) if row.times else "",
    )
