"""Plot the curves of a run as a picture, when it is over."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hooks.combining import Chain
from hooks.reports.histories import call_on_finish
from trainer.checks.paths import to_absolute_path
from trainer.host.atomic_files import atomic_replace
from trainer.host.extras import require_extra
from trainer.host.folders import make_folder
from trainer.runs.panels import Curve, assign_colors, group_panels

log = logging.getLogger("entracte")

COLORS = ("#2f6fd0", "#d9691c", "#23895b", "#b3424a", "#7b58c2", "#8a6a1f", "#4d7c8f")
"""Colors of the curves, in the order of their names' first occurrence."""


def plot_history(
    records: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    metrics: Sequence[str] | None = None,
) -> Chain:
    """Draw the curves of the whole run as a PNG, when it ends, is interrupted or fails.

    A resumed run has complete curves. Metrics that differ only in their first part, `train/loss`
    and `val/loss`, share a panel, and so do all layers in a score of `watch_gradients`.

    Args:
        records: path of the file that a `JsonLines` of `log_metrics` writes.
        path: of the picture, `runs/digits/history.png`; it is replaced.
        metrics: names of those to show, such as `("train/loss", "val/loss")`; if None, all except
            times and the machine's.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: before training, nothing writes one of the metrics.
        FileNotFoundError: at the start, nothing writes the records.
        OSError: the picture's folder cannot be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(plot_history(f"{folder}/metrics.jsonl", f"{folder}/history.png"))
    event  stage    hook                reads  writes
    start  observe  plot_history/start
    end    observe  plot_history
    """
    with require_extra("plots", "plot_history", "matplotlib"):
        import matplotlib.figure  # noqa: F401
    path, where = to_absolute_path(path, "plot_history"), to_absolute_path(records, "plot_history")
    make_folder(path.parent, "plot_history")

    def draw(curves: Mapping[str, Curve]) -> None:
        if panels := group_panels(curves, metrics):
            draw_panels(panels, path)
        else:
            log.info("plot_history: there is nothing to plot yet in %s", where)

    expects = () if metrics is None else tuple(metrics)
    return call_on_finish("plot_history", draw, records=where, expects=expects)


def draw_panels(panels: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """Draw panels, panel to name in it to curve, side by side as a PNG; replace it atomically."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(0.6 + 4.2 * columns, 0.2 + 2.9 * rows), dpi=150, layout="constrained")
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
    with atomic_replace(path) as beside:
        figure.savefig(beside, format="png")


def shorten(name: str) -> str:
    """Shorten a name that would leave no room for the curves, keeping its end."""
    return name if len(name) <= 40 else f"…{name[-39:]}"
