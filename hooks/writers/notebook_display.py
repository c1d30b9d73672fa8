"""How a run looks in a notebook: one display, redrawn in place. Needs rich and IPython."""

from __future__ import annotations

import html
import threading
from collections.abc import Mapping
from numbers import Real
from typing import Any

from hooks.writers.console_display import TABLE_ONLY, RunDisplay
from hooks.writers.console_layout import escape_control
from hooks.writers.values import Progress, Text, Value
from trainer.host.rendering.html_tables import LINE, STYLE, escape_html, render_metrics
from trainer.host.rendering.panels import Curve, assign_colors, group_panels
from trainer.host.rendering.sparklines import (
    MAIN_METRICS,
    format_number,
    group_by_prefix,
    rank_metric,
)
from trainer.host.rendering.svg_charts import HUES, downsample, render_chart

PAUSE = 0.25
"""Seconds between two updates at least."""

PANELS = 4
"""Charts at most."""

COLORS = ("#3b82f6", "#e07020", "#2a9d6a", "#d9536f", "#8b6fd6", "#a8842c", "#5b8fa3")
"""Of curves: each is visible on white and on black, since a page cannot ask for a theme."""

CHART_STYLE = (
    "<style>.entracte .line {display: flex; flex-wrap: wrap; gap: 2px 18px; align-items: center; "
    "margin: 2px 0; font-size: 13px; font-variant-numeric: tabular-nums} "
    ".entracte .dim {opacity: 0.7} "
    f".entracte .bar {{flex: 1; min-width: 120px; height: 6px; border-radius: 3px; "
    f"background: {LINE}; overflow: hidden}} "
    f".entracte .bar div {{height: 100%; background: {COLORS[0]}}} "
    ".entracte .charts {display: flex; flex-wrap: wrap; gap: 8px 20px; margin: 6px 0} "
    ".entracte .charts > div {flex: 1 1 280px; max-width: 420px} "
    ".entracte svg {display: block; width: 100%; height: auto} "
    ".entracte svg text {fill: currentColor; opacity: 0.7; font-size: 11px} "
    f".entracte svg .grid {{stroke: {LINE}}} "
    ".entracte svg path {fill: none; stroke-width: 1.8; stroke-linejoin: round} "
    ".entracte pre {max-height: 16em; overflow: auto; white-space: pre-wrap; margin: 2px 0 8px; "
    f"padding: 6px 10px; border: 1px solid {LINE}; border-radius: 4px; background: none; "
    "color: inherit; font-size: 12px} "
    + "".join(
        f".entracte svg .c{n} {{stroke: {color}}} .entracte svg circle.c{n} {{fill: {color}}} "
        f".entracte i.c{n} {{display: inline-block; width: 14px; height: 3px; margin: 0 5px 3px 0; "
        f"background: {color}}} "
        for n, color in enumerate(COLORS[:HUES])
    )
    + "</style>"
)


class NotebookDisplay:
    """The display of one run: its progress, newest metrics, curves and last texts.

    A thread redraws it while the run continues, since a phase may compute for long. At the end it
    holds the curves and the table of all metrics.
    """

    def __init__(self, run: RunDisplay) -> None:
        self._run = run
        self._curves: dict[str, Curve] = {}
        self._texts: dict[str, tuple[str, str]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._shown: dict[str, str] = {}
        self._handle: Any = None
        self._thread = threading.Thread(target=self._follow, name="notebook display", daemon=True)

    def start(self) -> None:
        """Show it below the cell that runs, and follow the run."""
        from IPython.display import display

        self._shown = self._bundle()
        self._handle = display(self._shown, raw=True, display_id=True)
        self._thread.start()

    def add(self, step: int, values: Mapping[str, Value]) -> None:
        """Add the values of an event; they are drawn with the next update."""
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, Real)}
        progress = values.get("epoch")
        known = isinstance(progress, Progress)
        with self._lock:
            for name, value in values.items():
                if isinstance(value, Text):
                    when = f"epoch {progress.done}" if known else f"step {step}"  # type: ignore[union-attr]
                    self._texts[name] = when, value.text
            if not numbers:
                return
            self._run.add(step, values)
            for name, number in numbers.items():
                if rank_metric(name) < len(MAIN_METRICS) and not name.startswith(TABLE_ONLY):
                    self._curves.setdefault(name, Curve()).add(self._run.progress.done, number)

    def close(self) -> None:
        """Show the curves and the table, and stop following."""
        self._over.set()
        self._thread.join()
        self._update(self._bundle(over=True))

    def render(self, *, over: bool = False) -> str:
        """Render it as HTML without scripts, so that it stays as it is in the saved notebook."""
        with self._lock:
            curves = {name: downsample(curve) for name, curve in self._curves.items()}
            texts = dict(self._texts)
            if over and self._run.summaries:
                head = ""
                below = render_metrics(self._run.summaries, caption=self._run.title())
            else:
                head, below = self._render_progress(), ""
        said = "".join(_render_text(name, *text) for name, text in texts.items())
        body = f"{head}{_render_curves(curves)}{below}{said}"
        return f'<div class="entracte">{STYLE}{CHART_STYLE}{body}</div>'

    def _render_progress(self) -> str:
        done, percent, speed, left, activity = self._run.standing()
        total = self._run.progress.total
        bar = f'<div style="width: {100 * done / total:.1f}%"></div>' if total else ""
        facts = "".join(f"<span>{fact}</span>" for fact in (percent, speed, left) if fact)
        lines = [f'<b>epoch {self._run.format_epoch()}</b><div class="bar">{bar}</div>{facts}']
        if activity:
            lines.append(f'<span class="dim">{escape_html(activity)}</span>')
        newest = self._run.newest
        for prefix, names in group_by_prefix(newest).items():
            cells = [f"<b>{escape_html(prefix)}</b>"] if prefix else []
            for name in names:
                leaf = escape_html(name.rpartition("/")[2])
                number = format_number(newest[name])
                cells.append(f'<span><span class="dim">{leaf}</span> {number}</span>')
            lines.append("".join(cells))
        return "".join(f'<div class="line">{line}</div>' for line in lines)

    def _follow(self) -> None:
        while not self._over.wait(PAUSE):
            self._update(self._bundle())

    def _update(self, bundle: dict[str, str]) -> None:
        if bundle != self._shown:
            self._shown = bundle
            self._handle.update(bundle, raw=True)

    def _bundle(self, *, over: bool = False) -> dict[str, str]:
        """Return it as HTML, and as a line for where no HTML is shown."""
        return {"text/html": self.render(over=over), "text/plain": self._run.line()}


def _render_curves(curves: Mapping[str, Curve]) -> str:
    """Render a chart for each panel whose curves have two points or more."""
    panels = group_panels({name: one for name, one in curves.items() if len(one.values) > 1})
    hues = assign_colors(panels, range(HUES))
    charts = []
    for panel, members in list(panels.items())[:PANELS]:
        names = "".join(
            f'<span class="dim"><i class="c{hues[label]}"></i>{escape_html(label)}</span>'
            for label in members
            if label
        )
        chart = render_chart(members, hues, f"{panel} by epoch").replace("\n", "")
        charts.append(
            f'<div><div class="line"><b>{escape_html(panel)}</b>{names}</div>{chart}</div>'
        )
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _render_text(name: str, when: str, text: str) -> str:
    lines = html.escape(escape_control(text)).replace("\n", "&#10;")
    head = f'<div class="line"><b>{escape_html(name)}</b><span class="dim">{when}</span></div>'
    return f"{head}<pre>{lines}</pre>"
