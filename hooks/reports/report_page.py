"""Render the page of a report: self-contained HTML, with every text escaped."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.host.amounts import format_duration
from trainer.host.atomic_files import atomic_replace
from trainer.host.rendering.panels import Curve, assign_colors, group_panels, hook_times
from trainer.host.rendering.sparklines import format_number, rank_metric
from trainer.host.rendering.svg_charts import HUES, render_chart

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b1f24; --dim: #5d6875;
  --line: #dfe3e8; --c0: #2f6fd0; --c1: #c65a12; --c2: #1f7f53; --c3: #b3424a; --c4: #7350b8;
  --c5: #80621a; --c6: #3f7385; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1c2026; --ink: #e6e9ed;
  --dim: #98a3b0; --line: #333a43; --c0: #72a7f5; --c1: #f0954f; --c2: #5dc493; --c3: #ec8088;
  --c4: #b298ee; --c5: #d3ae58; --c6: #7fbccf; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1360px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { margin: 0 0 12px; font-size: 26px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 32px 0 10px; font-size: 18px; }
h3 { margin: 0 0 4px; font-size: 14px; overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: 10px 28px; margin: 0; }
dt { color: var(--dim); font-size: 12px; }
dd { margin: 0; font-weight: 600; }
.charts { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; }
.names { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 12px; color: var(--dim); }
.names span { overflow-wrap: anywhere; }
.names i { display: inline-block; width: 14px; height: 3px; margin-right: 5px;
  vertical-align: middle; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--dim); font-size: 11px; }
.grid { stroke: var(--line); }
path { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.wide { overflow-x: auto; }
.side { display: grid; gap: 0 24px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
th { color: var(--dim); font-weight: 500; font-size: 12px; white-space: nowrap; }
td { overflow-wrap: anywhere; }
td:first-child { min-width: 9em; }
.pairs td:first-child { width: 40%; }
.num { text-align: right; white-space: nowrap; }
.text { white-space: pre-wrap; }
@media (max-width: 560px) { table { font-size: 12px; } th, td { padding-right: 7px; }
  th { font-size: 11px; } td:first-child { min-width: 7em; } }
""" + "".join(
    f".c{n} {{ stroke: var(--c{n}); }} circle.c{n} {{ fill: var(--c{n}); stroke: none; }} "
    f"i.c{n} {{ background: var(--c{n}); }}\n"
    for n in range(HUES)
)


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


def write_page(path: Path, report: Report) -> None:
    """Write the page of a report, and replace an earlier one at the path."""
    with atomic_replace(path) as beside:
        beside.write_text(render_page(report), encoding="utf-8", errors="xmlcharrefreplace")


def render_page(report: Report) -> str:
    """Render a page.

    >>> shown = render_page(Report("<run> & co", {"epochs": "1 of 2"}, {}, {}, {}))
    >>> "<h1>&lt;run&gt; &amp; co</h1>" in shown, "<dd>1 of 2</dd>" in shown, "<script" in shown
    (True, True, False)
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
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<dl>{facts}</dl>
{_section("Curves", _charts(report.curves))}
{_section("Scores", _scores(report.curves))}
<div class="side">
{_section("Configuration", _pairs(report.config))}
{_section("Environment", _pairs(report.environment))}
</div>
{_section("Time in hooks", _times(report.curves))}
{"".join(_section(html.escape(name), _table(table)) for name, table in report.tables.items())}
</main>
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
        cards.append(
            f'<div class="card"><h3>{html.escape(panel)}</h3><div class="names">{names}</div>\n'
            f"{render_chart(members, hues, f'{panel} by epoch')}</div>"
        )
    return f'<div class="charts">{"".join(cards)}</div>' if cards else ""


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


def _times(curves: Mapping[str, Curve]) -> str:
    """Show each hook's time, the costliest first, and its share of the time of phases and hooks."""
    rows = []
    for hook in hook_times(curves):
        times = [format_duration(seconds, digits=3) for seconds in (hook.seconds, hook.each)]
        rows.append((hook.name, *times, f"{hook.share:.1%}"))
    return _table(ReportTable(("hook", "in all", "an epoch", "of the run"), rows))


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
