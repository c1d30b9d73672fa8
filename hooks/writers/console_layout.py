"""How metrics and texts are laid out on a console. Needs rich."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Mapping

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from trainer.host.escaping import escape_lines
from trainer.runs.sparklines import format_number, rank_metric


def group_by_prefix(names: Iterable[str]) -> dict[str, list[str]]:
    """Group metric names by all but their last part, the most important first.

    >>> group_by_prefix(["train/norm", "train/loss", "val/accuracy", "val/loss"])
    {'train': ['train/loss', 'train/norm'], 'val': ['val/loss', 'val/accuracy']}
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition("/")[0], []).append(name)
    return {prefix: sorted(group, key=rank_metric) for prefix, group in groups.items()}


def layout_rows(
    metrics: Mapping[str, float], width: int, curves: Mapping[str, str] | None = None
) -> list[Text]:
    """Lay out metrics, a row per prefix, in as many columns as fit.

    Args:
        metrics: name to value.
        width: of the console, in characters.
        curves: of some metrics, shown behind their values; none if they do not all fit.
    """
    curves = curves or {}
    groups = group_by_prefix(metrics)
    leaves = {name: name.rpartition("/")[2] for name in metrics}
    prefix_width = max(map(len, groups), default=0) + 2
    columns = list(itertools.zip_longest(*groups.values()))
    leaf_widths = [max(len(leaves[name]) for name in column if name) for column in columns]
    curve_widths = [max(len(curves.get(name, "")) for name in column if name) for column in columns]
    lines = []
    for prefix, names in groups.items():
        line = Text(no_wrap=True, overflow="crop").append(f"{prefix:<{prefix_width}}", "bold cyan")
        for name, leaf_width, curve_width in zip(names, leaf_widths, curve_widths, strict=False):
            cell = f"{leaves[name]:<{leaf_width}} {format_number(metrics[name]):<9} "
            if curve_width:
                cell += f"{curves.get(name, ''):<{curve_width}} "
            cell += " "
            if len(line) + len(cell.rstrip()) > width:
                if curves:
                    return layout_rows(metrics, width)
                break
            curve_start = len(cell) - (curve_width + 2 if curve_width else 0)
            line.append(cell[:leaf_width], "dim").append(cell[leaf_width:curve_start])
            line.append(cell[curve_start:], "cyan")
        lines.append(line)
    return lines


def supports_unicode(console: Console) -> bool:
    """Return whether a console can show the characters that curves are drawn with."""
    return console.encoding.lower().startswith("utf")


def make_panel(name: str, text: str, when: str) -> Panel:
    """Frame a text, with its name and time above."""
    return Panel(
        Text(escape_control(text)),
        title=Text(f"{name}, {when}", "bold cyan"),
        title_align="left",
        border_style="dim",
        box=box.ROUNDED,
    )


def indent_text(name: str, text: str, when: str) -> str:
    """Lay out a text for a file: its name and time on a line, the text below.

    >>> print(indent_text("sample", "Once\\nupon a time", "epoch 5"))
    sample, epoch 5
        Once
        upon a time
    """
    return f"{name}, {when}\n{textwrap.indent(escape_control(text), ' ' * 4)}"


def escape_control(text: str) -> str:
    """Escape invisible characters that a terminal would obey.

    >>> escape_control("a\\tb\\x1b[2J")
    'a   b\\\\x1b[2J'
    """
    return escape_lines(text.expandtabs(4).replace("\r\n", "\n"))
