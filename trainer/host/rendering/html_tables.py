"""Tables as HTML for notebooks, in the colors of their theme, light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from trainer.host.escaping import escape_text
from trainer.host.rendering.sparklines import MetricSummary, format_number, group_by_prefix

CURVE = 16
"""Characters of a curve in a table."""

LINE = "rgba(128, 128, 128, 0.35)"
"""Color of lines, visible on white and on black."""

STYLE = (
    "<style>.entracte table {border-collapse: collapse; margin: 0.4em 0; font-size: 13px; "
    "font-variant-numeric: tabular-nums} "
    ".entracte caption {caption-side: top; text-align: left; font-weight: 600; color: inherit; "
    "padding: 0 0 4px} "
    f".entracte tr > * {{padding: 3px 14px 3px 0; border: 0; border-bottom: 1px solid {LINE}; "
    "text-align: left; vertical-align: top; background: none; color: inherit; max-width: 40em; "
    "overflow-wrap: anywhere} "
    ".entracte tr > th {font-weight: 500; opacity: 0.7} "
    ".entracte tr > .right {text-align: right; white-space: nowrap} "
    ".entracte .long {max-height: 28em; overflow: auto}</style>"
)


def render_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str = "",
    right: Collection[int] = (),
) -> str:
    """Render a table, whose texts are escaped, with its style; a long one scrolls.

    Args:
        heads: of the columns; none are shown if all are empty.
        rows: the cells of each.
        caption: above the table.
        right: the numbers of the columns that are aligned at the right.

    >>> "<td>a&lt;b</td>" in render_table(["path"], [["a<b"]])
    True
    """
    titled = f"<caption>{escape_html(caption)}</caption>" if caption else ""
    body = "".join(f"<tr>{_render_cells(row, 'td', right)}</tr>" for row in rows)
    head = f"<thead><tr>{_render_cells(heads, 'th', right)}</tr></thead>" if any(heads) else ""
    table = f'<table class="entracte-table">{titled}{head}<tbody>{body}</tbody></table>'
    return f'<div class="entracte">{STYLE}<div class="long">{table}</div></div>'


def render_facts(facts: Mapping[str, str], *, caption: str = "") -> str:
    """Render names and their values, without those that are empty.

    >>> render_facts({"state": "running", "error": ""}).count("<tr>")
    1
    """
    return render_table(("", ""), [fact for fact in facts.items() if fact[1]], caption=caption)


def render_metrics(summaries: Mapping[str, MetricSummary], *, caption: str = "") -> str:
    """Render the last, lowest and highest value of each metric, and its curve."""
    rows = []
    for name in (name for names in group_by_prefix(summaries).values() for name in names):
        found = summaries[name]
        extremes = [
            (format_number(value), str(epoch)) if math.isfinite(value) else ("", "")
            for value, epoch in (found.lowest, found.highest)
        ]
        last = format_number(found.last)
        rows.append([name, last, *extremes[0], *extremes[1], found.sparkline(CURVE)])
    heads = ["metric", "last", "lowest", "epoch", "highest", "epoch", "course"]
    return render_table(heads, rows, caption=caption, right=range(1, 7))


def escape_html(text: object) -> str:
    """Escape a text for HTML, with its control characters shown.

    >>> escape_html("<b>\\x1b")
    '&lt;b&gt;\\\\x1b'
    """
    return html.escape(escape_text(text))


def _render_cells(cells: Sequence[str], tag: str, right: Collection[int]) -> str:
    right_class = ' class="right"'
    return "".join(
        f"<{tag}{right_class if number in right else ''}>{escape_html(cell)}</{tag}>"
        for number, cell in enumerate(cells)
    )
