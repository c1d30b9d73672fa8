"""Tables as plain text, for where rich is not installed."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def align_columns(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """Align the cells of rows, the heads first, in columns; those numbered `right` at the right.

    >>> print(align_columns([("path", "count"), ("w", "12")], right=[1]))
    path  count
    w        12
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
