"""Plots in a terminal: curves in braille, eight dots a character, with numbers beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from trainer.host.escaping import escape_text
from trainer.runs.panels import Curve, choose_ticks
from trainer.runs.sparklines import finite_mean

COLORS = ("cyan", "yellow", "green", "magenta", "red", "blue")
"""Of the curves in a plot, by their number."""

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the dots of a braille character, by row and column."""

LEFT = 9
"""Characters left of the curves, for the numbers and the axis."""

Dot = tuple[int, int]


def plot(
    title: str,
    curves: Mapping[str, Curve],
    *,
    width: int,
    height: int,
    colors: Mapping[str, str] = {},
) -> Text:
    """Draw curves over epochs, their names above; where points are close, their means.

    Args:
        title: of the plot.
        curves: by their names in it.
        width: in characters, all in all.
        height: of the curves themselves, in lines.
        colors: of the names.

    Returns:
        `height + 2` lines of at most so many characters.

    >>> drawn = plot("loss", {"": Curve([1, 2, 3], [3.0, 2.0, 1.0])}, width=19, height=2)
    >>> print("\\n".join(line.rstrip() for line in drawn.plain.split("\\n")))
    loss
            │⠉⠒⠤⢄⡀
          1 ┤    ⠈⠉⠒⠢⠤⣀
             1    2   3
    """
    heading = _heading(title, curves, colors)
    heading.truncate(width, overflow="ellipsis")
    across = max(width - LEFT, 1)
    curves = {name: _thinned(curve, 2 * across) for name, curve in curves.items()}
    points = [p for c in curves.values() for p in zip(c.epochs, c.values, strict=True)]
    finite = [point for point in points if math.isfinite(point[1])]
    if not finite:
        return Text("\n").join([heading, Text("no finite value", "dim"), *[Text("")] * height])
    epochs, values = zip(*finite, strict=True)
    left, right, low, high = min(epochs), max(epochs), min(values), max(values)
    bits, names = [[0] * across for _ in range(height)], [[""] * across for _ in range(height)]
    for name, curve in curves.items():
        places = [
            (_place(epoch, left, right, 2 * across), _place(value, high, low, 4 * height))
            if math.isfinite(value)
            else None
            for epoch, value in zip(curve.epochs, curve.values, strict=True)
        ]
        for x, y in _dots(places):
            bits[y // 4][x // 2] |= DOTS[y % 4][x % 2]
            names[y // 4][x // 2] = name
    levels = _levels(low, high, height)
    lines = [heading]
    for row in range(height):
        line = Text(f"{_short(levels[row]) if row in levels else '':>{LEFT - 2}} ", "dim")
        line.append("┤" if row in levels else "│")
        for dots, name in zip(bits[row], names[row], strict=True):
            line.append(
                chr(0x2800 + dots) if dots else " ", f"not dim {colors.get(name, COLORS[0])}"
            )
        lines.append(line)
    return Text("\n").join([*lines, _axis(left, right, across)])


def colors_of(panels: Mapping[str, Mapping[str, Curve]]) -> dict[str, str]:
    """Give each name a color, the same in every plot."""
    names = dict.fromkeys(name for curves in panels.values() for name in curves)
    return {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}


def _heading(title: str, curves: Mapping[str, Curve], colors: Mapping[str, str]) -> Text:
    heading = Text(escape_text(title), "bold", end="")
    for name in curves:
        if name:
            heading.append("  ━ ", f"not bold {colors.get(name, COLORS[0])}")
            heading.append(escape_text(name), "not bold")
    return heading


def _thinned(curve: Curve, count: int) -> Curve:
    """Take the means of neighbours, so that about so many points are left."""
    each = len(curve.values) // count
    if each < 2:
        return curve
    starts = range(0, len(curve.values), each)
    return Curve(
        [finite_mean(curve.epochs[start : start + each]) for start in starts],
        [finite_mean(curve.values[start : start + each]) for start in starts],
    )


def _levels(low: float, high: float, height: int) -> dict[int, float]:
    """Choose the numbers beside the lines, not of lines that are neighbours."""
    levels: dict[int, float] = {}
    for value in choose_ticks(low, high):
        row = _place(value, high, low, 4 * height) // 4
        if not {row, row + 1} & levels.keys():
            levels[row] = value
    return levels


def _axis(left: float, right: float, across: int) -> Text:
    """Write the epochs below the places that they have, as many as there is room for."""
    line = [" "] * across
    free = 0
    for value in choose_ticks(left, right, whole=True):
        label = _short(value)
        middle = _place(value, left, right, 2 * across) // 2
        start = max(min(middle - (len(label) - 1) // 2, across - len(label)), 0)
        if start >= free:
            line[start : start + len(label)] = label
            free = start + len(label) + 2
    return Text(" " * LEFT + "".join(line[:across]).rstrip(), "dim")


def _place(value: float, first: float, last: float, count: int) -> int:
    """Place a value between those of the first and the last of so many dots."""
    span = last - first
    share = (value - first) / span if span and math.isfinite(span) else 0.5
    return min(max(round(share * (count - 1)), 0), count - 1)


def _dots(places: Sequence[Dot | None]) -> Iterator[Dot]:
    """Give the dots of a line through places, broken where one is None."""
    before: Dot | None = None
    for place in places:
        if place is not None:
            yield from [place] if before is None else _between(before, place)
        before = place


def _between(start: Dot, end: Dot) -> Iterator[Dot]:
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    for step in range(steps + 1):
        share = step / steps
        yield (
            round(start[0] + (end[0] - start[0]) * share),
            round(start[1] + (end[1] - start[1]) * share),
        )


def _short(value: float) -> str:
    written = f"{value:.4g}"
    return written if len(written) <= LEFT - 2 else f"{value:.1g}"
