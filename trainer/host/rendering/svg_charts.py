"""Draw curves as SVG charts, on a linear or a logarithmic axis; they need no scripts."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence

from trainer.host.rendering.panels import Curve, choose_ticks
from trainer.host.rendering.sparklines import format_number

WIDTH, HEIGHT = 380, 210
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 26
"""Margins around the curves."""

POINTS = 300
"""Points of a curve to draw, at most: evenly picked ones and the last."""

HUES = 7
"""Colors that the page defines, `c0` to `c6`."""


def render_chart(
    curves: Mapping[str, Curve],
    hues: Mapping[str, int],
    title: str,
    *,
    logarithmic: bool = False,
    points: bool = False,
) -> str:
    """Draw the curves of a panel, by their names in it, with the number of each name's color.

    Args:
        curves: by name.
        hues: number of each name's color.
        title: said where pictures are read aloud.
        logarithmic: draw on a logarithmic axis; the values must suit it, see `suits_logarithm`.
        points: give each path its points, for a script: `data-points` is `epoch x y value;...`.

    >>> drawn = render_chart({"val": Curve([1, 2, 3], [1.0, 0.5, 0.25])}, {"val": 1}, "loss")
    >>> drawn.count("<path"), drawn.count("<circle"), "val, epoch 3: 0.2500" in drawn
    (1, 3, True)
    """
    curves = {name: downsample(curve) for name, curve in curves.items()}
    across = _Scale([e for c in curves.values() for e in c.epochs], LEFT, WIDTH - RIGHT)
    values = [v for c in curves.values() for v in c.values]
    up = _Scale(values, HEIGHT - BOTTOM, TOP, math.log10 if logarithmic else float)
    choose = choose_log_ticks if logarithmic else choose_ticks
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">',
        *(_draw_y_tick(value, up) for value in choose(up.low, up.high)),
        f'<text x="{LEFT - 6}" y="{HEIGHT - 8}" text-anchor="end">epoch</text>',
        *(
            f'<text x="{across(value)}" y="{HEIGHT - 8}" text-anchor="middle">'
            f"{_format_tick(value)}</text>"
            for value in choose_ticks(across.low, across.high, whole=True)
        ),
        *(
            _draw_curve(name, curve, hues[name], across, up, points=points)
            for name, curve in curves.items()
        ),
        "</svg>",
    ]
    return "\n".join(parts)


def suits_logarithm(curves: Mapping[str, Curve]) -> bool:
    """Return whether all finite values are positive, and not all the same.

    >>> suits_logarithm({"a": Curve([1, 2], [0.5, 1])}), suits_logarithm({"a": Curve([1], [0.0])})
    (True, False)
    """
    values = [v for c in curves.values() for v in downsample(c).values if math.isfinite(v)]
    return bool(values) and 0 < min(values) < max(values)


def choose_log_ticks(low: float, high: float) -> list[float]:
    """Choose round numbers of a logarithmic axis from low to high, both positive.

    >>> choose_log_ticks(0.002, 3.0), choose_log_ticks(0.3, 4.0), choose_log_ticks(0.5, 0.6)
    ([0.01, 0.1, 1.0], [0.5, 1.0, 2.0], [0.5, 0.52, 0.54, 0.56, 0.58, 0.6])
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5)):
        ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            return ticks[:: -(-len(ticks) // 8)]
    return choose_ticks(low, high)


def downsample(curve: Curve) -> Curve:
    """Pick points evenly if there are many, the last among them."""
    stride = max(-(-len(curve.values) // POINTS), 1)
    first = (len(curve.values) - 1) % stride
    return Curve(curve.epochs[first::stride], curve.values[first::stride])


class _Scale:
    """Maps numbers to positions on an axis, the lowest to its start."""

    def __init__(
        self,
        numbers: Sequence[float],
        start: float,
        end: float,
        transform: Callable[[float], float] = float,
    ) -> None:
        finite = [number for number in numbers if math.isfinite(number)] or [1.0]
        self.low, self.high, self.start, self.end = min(finite), max(finite), start, end
        self._transform = transform

    def __call__(self, number: float) -> float:
        low, high, number = map(self._transform, (self.low, self.high, number))
        span = high - low
        share = (number - low) / span if 0 < span < math.inf else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def _draw_y_tick(value: float, up: _Scale) -> str:
    y = up(value)
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text x="{LEFT - 6}" y="{y + 3.5}" text-anchor="end">{_format_tick(value)}</text>'
    )


def _format_tick(value: float) -> str:
    return f"{value:.6g}" if abs(value) < 1e5 else f"{value:.2g}"


def _draw_curve(
    name: str, curve: Curve, hue: int, across: _Scale, up: _Scale, *, points: bool
) -> str:
    """Draw a line, broken at non-finite values; if there are few points, each shows its value."""
    steps, pen, placed = [], "M", []
    for epoch, value in zip(curve.epochs, curve.values, strict=True):
        if not math.isfinite(value):
            pen = "M"
            continue
        x, y = across(epoch), up(value)
        steps.append(f"{pen}{x} {y}")
        placed.append((f"{epoch:g}", x, y, format_number(value)))
        pen = "L"
    data = ""
    if points:
        listed = ";".join(" ".join(map(str, point)) for point in placed)
        data = f' data-name="{html.escape(name)}" data-points="{listed}"'
    drawn = [f'<path class="c{hue}" d="{" ".join(steps)}"{data}/>']
    if len(curve.values) <= 40:
        drawn += [
            f'<circle class="c{hue}" cx="{x}" cy="{y}" r="2.2"><title>'
            f"{html.escape(name)}, epoch {epoch}: {shown}</title></circle>"
            for epoch, x, y, shown in placed
        ]
    return "".join(drawn)
