"""How metrics, texts and what a run is doing look on a console. Needs rich."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence

from rich import box
from rich.panel import Panel
from rich.text import Text

from trainer.host.amounts import format_duration
from trainer.host.escaping import escape_lines
from trainer.host.rendering.sparklines import format_number, group_by_prefix
from trainer.host.time_spans import OpenSpan, StepProgress

LONG = 1.0
"""Seconds after which an activity is shown."""

COMPUTING = ("dispatch", "wait", "data")
"""Kinds of spans in which a phase computes."""

VERBS = {"compile": "compiling", "flush": "flushing"}


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


def describe_activity(open_spans: Sequence[OpenSpan]) -> str:
    """Describe what a run is doing, if that takes long.

    Args:
        open_spans: of the run's thread, the outermost first.

    >>> describe_activity([OpenSpan("compile", "train", 12.3)])
    'compiling train, 12 s'
    >>> epoch = OpenSpan("epoch", "", 95.0, steps=(StepProgress("train", 1200, 5000),))
    >>> describe_activity([epoch, OpenSpan("wait", "train", 5.0)])
    'train, 1,200 of 5,000 steps, 95 s of this epoch'
    >>> describe_activity([OpenSpan("event", "epoch", 9.0), OpenSpan("hook", "evaluate", 9.0)])
    'hook evaluate, 9 s'
    >>> describe_activity([OpenSpan("epoch", "", 0.1)])
    ''
    """
    inner = [span for span in open_spans if span.kind not in ("epoch", "event")]
    if not inner or open_spans[0].seconds < LONG:
        return ""
    if inner[-1].kind == "compile":  # also within a hook
        inner = inner[-1:]
    kind, name, seconds = inner[0][:3]
    epoch = open_spans[0]
    if kind in COMPUTING and epoch.kind == "epoch":
        steps = [format_steps(progress) for progress in epoch.steps if progress.phase == name]
        spent = f"{format_duration(epoch.seconds)} of this epoch"
        return ", ".join([escape_control(name) or kind, *steps, spent])
    if seconds < LONG:
        return ""
    steps = [
        escape_control(f"{progress.phase} ") + format_steps(progress)
        for span in inner
        for progress in span.steps[-1:]
    ]
    activity = escape_control(f"{VERBS.get(kind, kind)} {name}".strip())
    return ", ".join([activity, *steps, format_duration(seconds)])


def format_steps(progress: StepProgress) -> str:
    """Format how many steps of a phase are done.

    >>> format_steps(StepProgress("train", 16, None))
    '16 steps'
    """
    of = "" if progress.total is None else f"of {progress.total:,} "
    return f"{progress.done:,} {of}steps"
