"""Curves as figures of matplotlib, which this needs."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.host.rendering.panels import Curve, assign_colors

COLORS = ("#2f6fd0", "#d9691c", "#23895b", "#b3424a", "#7b58c2", "#8a6a1f", "#4d7c8f")
"""Colors of the curves, in the order of their names' first occurrence."""


class PanelFigure(Figure):
    """A figure that a notebook shows as it is, without pyplot, which would show it twice."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Return the picture and its width on the page, half its pixels: sharp screens have two."""
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue(), {"width": round(self.get_figwidth() * self.dpi / 2)}


def draw_panels(panels: Mapping[str, Mapping[str, Curve]]) -> PanelFigure:
    """Draw panels, panel to name in it to curve, side by side.

    >>> draw_panels({"loss": {"train": Curve([1, 2], [2.0, 1.0])}}).axes[0].get_title("left")
    'loss'
    """
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (0.6 + 4.2 * columns, 0.2 + 2.9 * rows)
    figure = PanelFigure(figsize=size, dpi=150, layout="constrained")
    colors = assign_colors(panels, COLORS)
    for place, (panel, curves) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        for label, curve in curves.items():
            axes.plot(
                curve.epochs,
                curve.values,
                marker="o" if len(curve.values) < 20 else None,
                markersize=3,
                linewidth=1.5,
                color=colors[label],
            )
        axes.set_title(shorten(panel), loc="left", fontsize=10, fontweight="bold", parse_math=False)
        axes.set_xlabel("epoch", fontsize=8, loc="right")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, lw=0.6)
        if any(curves):
            labels = list(map(shorten, curves))
            legend = axes.legend(axes.get_lines(), labels, fontsize=8, frameon=False)
            for text in legend.get_texts():
                text.set_parse_math(False)
    return figure


def shorten(name: str) -> str:
    """Shorten a name that would leave no room for the curves, keeping its end."""
    return name if len(name) <= 40 else f"…{name[-39:]}"
