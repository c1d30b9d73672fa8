"""Draw curves as SVG charts, which need no scripts."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from trainer.host.rendering.panels import Curve, choose_ticks
from trainer.host.rendering.sparklines import format_number

WIDTH, HEIGHT = 380, 210
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 26
"""Margins around the curves."""

POINTS = 300
"""Points of a curve to draw, at most: evenly picked ones and the last."""

HUES = 7
"""Colors that the page defines, `c0` to `c6`."""


def render_chart(curves: Mapping[str, Curve], hues: Mapping[str, int], title: str) -> str:
    """Draw the curves of a panel, by their names in it, with the number of each name's color.

    >>> drawn = render_chart({"val": Curve([1, 2, 3], [1.0, 0.5, 0.25])}, {"val": 1}, "loss")
    >>> drawn.count("<path"), drawn.count("<circle"), "val, epoch 3: 0.2500" in drawn
    (1, 3, True)
    """
    curves = {name: downsample(curve) for name, curve in curves.items()}
    across = _Scale([e for c in curves.values() for e in c.epochs], LEFT, WIDTH - RIGHT)
    up = _Scale([v for c in curves.values() for v in c.values], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">',
        *(_draw_y_tick(value, up) for value in choose_ticks(up.low, up.high)),
        f'<text x="{LEFT - 6}" y="{HEIGHT - 8}" text-anchor="end">epoch</text>',
        *(
            f'<text x="{across(value)}" y="{HEIGHT - 8}" text-anchor="middle">'
            f"{_format_tick(value)}</text>"
            for value in choose_ticks(across.low, across.high, whole=True)
        ),
        *(_draw_curve(name, curve, hues[name], across, up) for name, curve in curves.items()),
        "</svg>",
    ]
    return "\n".join(parts)


def downsample(curve: Curve) -> Curve:
    """Pick points evenly if there are many, the last among them."""
    stride = max(-(-len(curve.values) // POINTS), 1)
    first = (len(curve.values) - 1) % stride
    return Curve(curve.epochs[first::stride], curve.values[first::stride])


class _Scale:
    """Maps numbers to positions on an axis, the lowest to its start."""

    def __init__(self, numbers: Sequence[float], start: float, end: float) -> None:
        finite = [number for number in numbers if math.isfinite(number)] or [0.0]
        self.low, self.high, self.start, self.end = min(finite), max(finite), start, end

    def __call__(self, number: float) -> float:
        span = self.high - self.low
        share = (number - self.low) / span if 0 < span < math.inf else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def _draw_y_tick(value: float, up: _Scale) -> str:
    y = up(value)
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text x="{LEFT - 6}" y="{y + 3.5}" text-anchor="end">{_format_tick(value)}</text>'
    )


def _format_tick(value: float) -> str:
    return f"{value:.6g}" if abs(value) < 1e5 else f"{value:.2g}"


def _draw_curve(name: str, curve: Curve, hue: int, across: _Scale, up: _Scale) -> str:
    """Draw a line, broken at non-finite values; if there are few points, each shows its value."""
    places = [
        (across(epoch), up(value)) if math.isfinite(value) else None
        for epoch, value in zip(curve.epochs, curve.values, strict=True)
    ]
    steps, pen = [], "M"
    for place in places:
        if place is not None:
            steps.append(f"{pen}{place[0]} {place[1]}")
        pen = "M" if place is None else "L"
    drawn = [f'<path class="c{hue}" d="{" ".join(steps)}"/>']
    if len(places) <= 40:
        drawn += [
            f'<circle class="c{hue}" cx="{place[0]}" cy="{place[1]}" r="2.2"><title>'
            f"{html.escape(name)}, epoch {epoch:g}: {format_number(value)}</title></circle>"
            for place, epoch, value in zip(places, curve.epochs, curve.values, strict=True)
            if place is not None
        ]
    return "".join(drawn)
