"""Plot curves in a terminal, in braille: eight dots per character."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from trainer.host.escaping import escape_text
from trainer.host.rendering.panels import Curve, choose_ticks
from trainer.host.rendering.sparklines import finite_mean

COLORS = ("cyan", "yellow", "green", "magenta", "red", "blue")
"""Colors of the curves in a plot, by their number."""

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the dots in a braille character, by row and column."""

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
    """Plot curves over epochs, with their names above; close points are averaged.

    The plot has `height + 2` lines of at most `width` characters. Colors are by the curves' names.

    >>> drawn = plot("loss", {"": Curve([1, 2, 3], [3.0, 2.0, 1.0])}, width=19, height=2)
    >>> print("\\n".join(line.rstrip() for line in drawn.plain.split("\\n")))
    loss
            │⠉⠒⠤⢄⡀
          1 ┤    ⠈⠉⠒⠢⠤⣀
             1    2   3
    """
    heading = _make_heading(title, curves, colors)
    heading.truncate(width, overflow="ellipsis")
    across = max(width - LEFT, 1)
    curves = {name: _average_neighbours(curve, 2 * across) for name, curve in curves.items()}
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
        for x, y in _draw_lines(places):
            bits[y // 4][x // 2] |= DOTS[y % 4][x % 2]
            names[y // 4][x // 2] = name
    labels = _choose_labels(low, high, height)
    lines = [heading]
    for row in range(height):
        label = _format_tick(labels[row]) if row in labels else ""
        line = Text(f"{label:>{LEFT - 2}} ", "dim").append("┤" if label else "│")
        for dots, name in zip(bits[row], names[row], strict=True):
            line.append(
                chr(0x2800 + dots) if dots else " ", f"not dim {colors.get(name, COLORS[0])}"
            )
        lines.append(line)
    return Text("\n").join([*lines, _make_axis(left, right, across)])


def _make_heading(title: str, curves: Mapping[str, Curve], colors: Mapping[str, str]) -> Text:
    heading = Text(escape_text(title), "bold", end="")
    for name in curves:
        if name:
            heading.append("  ━ ", f"not bold {colors.get(name, COLORS[0])}")
            heading.append(escape_text(name), "not bold")
    return heading


def _average_neighbours(curve: Curve, count: int) -> Curve:
    """Average neighbouring points, so that about `count` are left."""
    size = len(curve.values) // count
    if size < 2:
        return curve
    starts = range(0, len(curve.values), size)
    return Curve(
        [finite_mean(curve.epochs[start : start + size]) for start in starts],
        [finite_mean(curve.values[start : start + size]) for start in starts],
    )


def _choose_labels(low: float, high: float, height: int) -> dict[int, float]:
    """Choose the numbers beside the lines, none on neighbouring lines."""
    labels: dict[int, float] = {}
    for value in choose_ticks(low, high):
        row = _place(value, high, low, 4 * height) // 4
        if not {row, row + 1} & labels.keys():
            labels[row] = value
    return labels


def _make_axis(left: float, right: float, across: int) -> Text:
    """Write the epochs at their places on the axis, as many as there is room for."""
    line = [" "] * across
    free = 0
    for value in choose_ticks(left, right, whole=True):
        label = _format_tick(value)
        middle = _place(value, left, right, 2 * across) // 2
        start = max(min(middle - (len(label) - 1) // 2, across - len(label)), 0)
        if start >= free:
            line[start : start + len(label)] = label
            free = start + len(label) + 2
    return Text(" " * LEFT + "".join(line[:across]).rstrip(), "dim")


def _place(value: float, first: float, last: float, count: int) -> int:
    """Return the dot of a value, of `count` dots from the first value to the last."""
    span = last - first
    share = (value - first) / span if span and math.isfinite(span) else 0.5
    return min(max(round(share * (count - 1)), 0), count - 1)


def _draw_lines(places: Sequence[Dot | None]) -> Iterator[Dot]:
    """Yield the dots of lines through places, interrupted where a place is None."""
    for before, place in itertools.pairwise([None, *places]):
        if place is not None:
            start = before or place
            across, down = place[0] - start[0], place[1] - start[1]
            steps = max(abs(across), abs(down), 1)
            for share in (step / steps for step in range(steps + 1)):
                yield round(start[0] + across * share), round(start[1] + down * share)


def _format_tick(value: float) -> str:
    text = f"{value:.4g}"
    return text if len(text) <= LEFT - 2 else f"{value:.1g}"
