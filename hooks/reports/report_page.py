"""Render the page of a report: self-contained HTML, with every text escaped."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hooks.reports.confusion_tables import collect_confusion, render_confusion
from hooks.reports.page_script import DIGEST, SCRIPT
from hooks.reports.page_style import STYLE
from hooks.reports.picture_cards import render_pictures
from trainer.host.amounts import format_duration
from trainer.host.atomic_files import atomic_replace
from trainer.host.rendering.panels import Curve, assign_colors, group_panels, hook_times
from trainer.host.rendering.sparklines import format_number, rank_metric
from trainer.host.rendering.svg_charts import HUES, render_chart, suits_logarithm

POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{DIGEST}'"
)
"""What the page may load: nothing. Its pictures are in it, and it runs its own script alone,
whatever texts it shows."""

SHARES = 6
"""Hooks with a color of their own in the bar of times, at most."""


class ReportTable(NamedTuple):
    """Rows whose first cell is a name; the others are numbers, except in columns of words."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[str] = ()
    """Heads of the columns of words."""


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of a page."""

    title: str
    outcome: Mapping[str, str]
    """How far the run came, and when."""
    curves: Mapping[str, Curve]
    config: Mapping[str, str]
    environment: Mapping[str, str]
    tables: Mapping[str, ReportTable] = dataclasses.field(default_factory=dict)
    """Further tables, by title; empty ones are left out."""
    pictures: Sequence[tuple[str, int, str, str]] = ()
    """Name, epoch, text, PNG in base64."""


def write_page(path: Path, report: Report) -> None:
    """Write the page of a report, and replace an earlier one at the path."""
    with atomic_replace(path) as beside:
        beside.write_text(render_page(report), encoding="utf-8", errors="xmlcharrefreplace")


def render_page(report: Report) -> str:
    """Render a page.

    >>> shown = render_page(Report("<run> & co", {"epochs": "1 of 2"}, {}, {}, {}))
    >>> "<h1>&lt;run&gt; &amp; co</h1>" in shown, "<dd>1 of 2</dd>" in shown
    (True, True)
    """
    title = html.escape(report.title)
    facts = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in report.outcome.items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<dl>{facts}</dl>
{_section("Curves", _charts(report.curves))}
{_section("Scores", _scores(report.curves))}
{_confusion(report.curves)}
{_section("Pictures", render_pictures(report.pictures))}
<div class="side">
{_section("Configuration", _pairs(report.config))}
{_section("Environment", _pairs(report.environment))}
</div>
{_section("Time in hooks", _times(report.curves))}
{"".join(_section(html.escape(name), _table(table)) for name, table in report.tables.items())}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>\n{body}</section>" if body else ""


def _charts(curves: Mapping[str, Curve]) -> str:
    panels = group_panels(curves)
    hues = assign_colors(panels, range(HUES))
    cards = []
    for panel, members in panels.items():
        names = "".join(
            f'<span><i class="c{hues[label]}"></i>{html.escape(label)}</span>'
            for label in members
            if label
        )
        title = f"{panel} by epoch"
        chart = f'<div class="linear">{render_chart(members, hues, title, points=True)}</div>'
        if suits_logarithm(members):
            title = f"{title}, logarithmic"
            drawn = render_chart(members, hues, title, logarithmic=True, points=True)
            chart = f'<div class="logarithmic">{drawn}</div>{chart}'
        cards.append(
            f'<div class="card"><h3>{html.escape(panel)}</h3><div class="names">{names}</div>\n'
            f"{chart}</div>"
        )
    switch = '<label class="switch"><input type="checkbox" id="log"> logarithmic axes</label>'
    return f'{switch}<div class="charts">{"".join(cards)}</div>' if cards else ""


def _scores(curves: Mapping[str, Curve]) -> str:
    rows = []
    for panel in group_panels(curves).values():
        for curve in panel.values():
            (name,) = (name for name, other in curves.items() if other is curve)
            found = curve.summary
            extremes = _format_extreme(*found.lowest), _format_extreme(*found.highest)
            rows.append((name, format_number(found.last), *extremes))
    rows.sort(key=lambda row: rank_metric(row[0]))
    return _table(ReportTable(("metric", "last", "lowest, at epoch", "highest, at epoch"), rows))


def _format_extreme(value: float, epoch: int) -> str:
    return f"{format_number(value)} at {epoch:,}" if math.isfinite(value) else ""


def _confusion(curves: Mapping[str, Curve]) -> str:
    return "".join(
        _section(
            f"Confusion matrix of {html.escape(split or 'the split')}, epoch {table.epoch:,g}",
            render_confusion(table),
        )
        for split, table in collect_confusion(curves).items()
    )


def _times(curves: Mapping[str, Curve]) -> str:
    """Show each hook's time, the costliest first, and its share of the time of phases and hooks."""
    rows, hooks = [], hook_times(curves)
    for hook in hooks:
        times = [format_duration(seconds, digits=3) for seconds in (hook.seconds, hook.each)]
        rows.append((hook.name, *times, f"{hook.share:.1%}"))
    table = _table(ReportTable(("hook", "in all", "an epoch", "of the run"), rows))
    return _shares({hook.name: hook.share for hook in hooks}) + table if rows else ""


def _shares(hooks: Mapping[str, float]) -> str:
    """Draw the shares of phases and hooks in the time as a bar, with a legend."""
    first = dict(list(hooks.items())[:SHARES])
    parts = [("phases", max(1 - sum(hooks.values()), 0.0), f"c{SHARES}")]
    parts += [(name, share, f"c{hue}") for hue, (name, share) in enumerate(first.items())]
    if rest := sum(hooks.values()) - sum(first.values()):
        parts.append(("other hooks", rest, "other"))
    bar = "".join(
        f'<span class="{hue}" style="--share:{share:.4f}" title="{html.escape(name)}, {share:.1%}">'
        "</span>"
        for name, share, hue in parts
    )
    legend = "".join(
        f'<span><i class="{hue}"></i>{html.escape(name)} {share:.1%}</span>'
        for name, share, hue in parts
    )
    return f'<div class="shares">{bar}</div><div class="names">{legend}</div>'


def _pairs(rows: Mapping[str, str]) -> str:
    if not rows:
        return ""
    body = "".join(
        f"<tr><td>{_breaking(name)}</td><td>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f'<div class="card wide pairs"><table>{body}</table></div>'


def _breaking(name: str) -> str:
    """Allow line breaks between the parts of a long name."""
    return html.escape(name).replace("/", "/<wbr>").replace("_", "_<wbr>").replace(".", ".<wbr>")


def _table(table: ReportTable) -> str:
    """Render a table; an empty string if it has no rows."""
    kinds = ["text" if head in table.words else "num" for head in table.heads]
    body = "".join(
        f"<tr><td>{_breaking(row[0])}</td>"
        + "".join(
            f'<td class="{kind}">{html.escape(cell)}</td>'
            for kind, cell in zip(kinds[1:], row[1:], strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    head = f"<th>{html.escape(table.heads[0])}</th>" + "".join(
        f'<th class="{kind}">{html.escape(head)}</th>'
        for kind, head in zip(kinds[1:], table.heads[1:], strict=True)
    )
    return f'<div class="card wide"><table><tr>{head}</tr>{body}</table></div>' if body else ""
