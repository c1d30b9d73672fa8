"""How a run looks on a console: its course so far, as a bar, a line or a table. Needs rich."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hooks.writers.writer import Progress, Value
from trainer.host.escaping import escape_lines
from trainer.host.time_spans import OpenSpan, StepProgress, list_open_spans
from trainer.runs.sparklines import MAIN_METRICS, MetricSummary, format_number, rank

COLUMNS = 4
"""Metrics on a plain line."""

CLOSING = ("system/", "gradients/")
"""What the table alone shows: the machine's part, and what there is for every layer."""

LONG = 1.0
"""Seconds from which on it is said what a run is at."""

WORKING = ("dispatch", "wait", "data")
"""Kinds of spans in which a phase computes."""

SAID = {"compile": "compiling", "flush": "flushing"}

CURVE = 10
"""Characters of a curve in the bar; in the table up to twice as many."""


@dataclasses.dataclass
class RunDisplay:
    """What is known of a run, and how it looks."""

    began: float
    """When its first epoch began, in seconds of `time.monotonic`."""
    before: int
    """Epochs completed then."""
    heard: float = 0.0
    """When it was last heard of."""
    step: int = 0
    progress: Progress = dataclasses.field(default_factory=lambda: Progress(0))
    speed: float | None = None
    """Steps a second."""
    event: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The newest event's metrics, without those that the table alone shows."""
    newest: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The newest value of each of these; replaced, never changed, since a thread shows it."""
    courses: dict[str, MetricSummary] = dataclasses.field(default_factory=dict)
    """Of every metric but times."""
    thread: int | None = None
    """That the run is on, where what it is at is known."""

    @classmethod
    def begun(cls, values: Mapping[str, Value]) -> RunDisplay:
        """Start with the values of a first epoch, which is over, or of none yet."""
        progress = values.get("epoch")
        before = max(progress.done - 1, 0) if isinstance(progress, Progress) else 0
        return cls(began=time.monotonic(), before=before)

    def add(self, step: int, values: Mapping[str, Value]) -> None:
        """Go on to these values."""
        progress = values.get("epoch")
        self.progress = progress if isinstance(progress, Progress) else self.progress
        self.step, self.heard = step, time.monotonic()
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, Real)}
        self.speed = numbers.get("time/steps_per_second", self.speed)
        self.began = min(self.began, self.heard - numbers.get("time/epoch_seconds", 0.0))
        numbers = {name: value for name, value in numbers.items() if not name.startswith("time/")}
        for name, value in numbers.items():
            self.courses.setdefault(name, MetricSummary()).add(value, self.progress.done)
        self.event = {k: v for k, v in numbers.items() if not k.startswith(CLOSING)}
        self.newest = {**self.newest, **self.event}

    def seconds_left(self, doing: Sequence[OpenSpan] = ()) -> float:
        """Estimate the time to the end from that of the epochs so far; nan if it has no end.

        In the first epoch from that of the steps so far; nan before there are some.
        """
        if self.progress.total is None:
            return math.nan
        if math.isinf(self.began):
            part = self.epoch_fraction(doing)
            if not part or doing[0].seconds < LONG:
                return math.nan
            return doing[0].seconds / part * (self.progress.total - self.progress.done - part)
        each = self.seconds_each()
        left = each * (self.progress.total - self.progress.done)
        return max(left - (time.monotonic() - self.heard), 0.0)

    def seconds_each(self) -> float:
        """Give the mean time of the epochs so far; nan before the first is over."""
        if math.isinf(self.began):
            return math.nan
        return (self.heard - self.began) / max(self.progress.done - self.before, 1)

    def epoch_fraction(self, doing: Sequence[OpenSpan]) -> float:
        """Estimate the part of the epoch under way that is done, by what those before took.

        In the first epoch by the steps of the phases that began in it, where they are known.
        """
        number = self.progress.done + 1  # or it is over, and its hooks run
        if not doing or (doing[0].kind, doing[0].number) != ("epoch", number):
            return 0.0
        each, steps = self.seconds_each(), doing[0].steps
        if not math.isnan(each):
            part = doing[0].seconds / each if each > 0 else 0.0
        else:
            totals = [one.total or math.inf for one in steps]
            part = sum(one.done for one in steps) / sum(totals) if totals else 0.0
        return min(part, 0.99)

    def count(self) -> str:
        """Say how far it is: `7/20`."""
        done, total = self.progress.done, self.progress.total
        return str(done) if total is None else f"{done:>{len(str(total))}}/{total}"

    def line(self) -> str:
        """Give this event as one line, aligned with those of other events."""
        names = [name for names in group_by_prefix(self.newest).values() for name in names]
        chosen = sorted(names, key=rank)[:COLUMNS]
        cells = [f"epoch {self.count()}"]
        if self.speed is not None:
            cells.append(f"{format_number(self.speed):>7} steps/s")
        for name in (name for name in names if name in chosen):
            cell = f"{name} {format_number(self.event[name])}" if name in self.event else ""
            cells.append(f"{cell:<{len(name) + 10}}")
        return "  ".join(cells).rstrip()

    def bar(self, width: int, *, curves: bool = True) -> Group:
        """Draw the progress, and below it a row of the newest metrics for each prefix.

        Curves are drawn where all of them fit.
        """
        doing = [] if self.thread is None else list_open_spans(self.thread)
        total, left = self.progress.total, self.seconds_left(doing)
        done = self.progress.done + self.epoch_fraction(doing)
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(no_wrap=True, style="bold")
        bar.add_column(ratio=1)
        for style in ("progress.percentage", "progress.data.speed", "progress.remaining"):
            bar.add_column(no_wrap=True, style=style)
        bar.add_row(
            f"epoch {self.count()}",
            ProgressBar(total=total, completed=done),
            f"{min(done / total, 1 if self.progress.done == total else 0.99):.0%}" if total else "",
            "" if self.speed is None else f"{format_number(self.speed)} steps/s",
            "" if math.isnan(left) else f"{datetime.timedelta(seconds=round(left))} left",
        )
        newest = self.newest
        drawn = {
            name: self.courses[name].curve(CURVE)
            for name in newest
            if curves and rank(name) < len(MAIN_METRICS)
        }
        said = describe_activity(doing)
        told = [Text(said, "dim", no_wrap=True, overflow="ellipsis")] if said else []
        return Group(bar, *told, *layout_rows(newest, width, drawn))

    def live(self, console: Console) -> Live:
        """Make a display of the bar that follows the run, above which others may print."""
        curves = has_blocks(console)
        return Live(
            get_renderable=lambda: self.bar(console.width, curves=curves),
            console=console,
            transient=True,
        )

    def render_summary(self, console: Console) -> Table:
        """Give the table, with curves as wide as there is room for."""
        room = console.width - console.measure(self.table()).maximum - 3
        return self.table(
            curve=min(room, 2 * CURVE) if has_blocks(console) and room >= len("course") else 0
        )

    def table(self, *, curve: int = 0) -> Table:
        """Sum up each metric, with a curve of so many characters."""
        took = datetime.timedelta(seconds=round(self.heard - self.began))
        table = Table(
            title=f"{self.count()} epochs, {self.step:,} steps, {took}".strip(),
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        table.add_column("metric", overflow="fold")  # whole: layers differ in their last letters
        table.add_column("last", justify="right")
        for name in ("lowest", "highest"):
            table.add_column(name, justify="right")
            table.add_column("epoch", justify="right", style="dim")
        if curve:
            table.add_column("course", no_wrap=True, style="cyan")
        for name in (name for names in group_by_prefix(self.courses).values() for name in names):
            course = self.courses[name]
            extremes = *_where(course.lowest), *_where(course.highest)
            drawn = [course.curve(curve)] if curve else []
            table.add_row(Text(name), format_number(course.last), *extremes, *drawn)
        return table


def describe_activity(doing: Sequence[OpenSpan]) -> str:
    """Say what a run is at, where that takes long.

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
    inside = [one for one in doing if one.kind not in ("epoch", "event")]
    if not inside or doing[0].seconds < LONG:
        return ""
    if inside[-1].kind == "compile":  # also within a hook
        inside = inside[-1:]
    kind, name, seconds = inside[0][:3]
    if kind in WORKING and doing[0].kind == "epoch":
        at = [format_steps(one) for one in doing[0].steps if one.phase == name]
        return ", ".join(
            [escape_control(name) or kind, *at, f"{doing[0].seconds:.0f} s of this epoch"]
        )
    said = escape_control(f"{SAID.get(kind, kind)} {name}".strip())
    at = [
        escape_control(f"{one.phase} ") + format_steps(one)
        for outer in inside
        for one in outer.steps[-1:]
    ]
    return ", ".join([said, *at, f"{seconds:.0f} s"]) if seconds >= LONG else ""


def format_steps(steps: StepProgress) -> str:
    """Say how many steps of a phase are done.

    >>> format_steps(StepProgress("train", 16, None))
    '16 steps'
    """
    return f"{steps.done:,} " + ("steps" if steps.total is None else f"of {steps.total:,} steps")


def group_by_prefix(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names by what stands before their last part, the most telling first.

    >>> group_by_prefix(["train/norm", "train/loss", "val/accuracy", "val/loss"])
    {'train': ['train/loss', 'train/norm'], 'val': ['val/loss', 'val/accuracy']}
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition("/")[0], []).append(name)
    return {prefix: sorted(group, key=rank) for prefix, group in groups.items()}


def layout_rows(
    metrics: Mapping[str, float], width: int, curves: Mapping[str, str] | None = None
) -> list[Text]:
    """Lay out metrics, a row for each prefix, in as many columns as fit.

    Args:
        metrics: name to value.
        width: of the console, in characters.
        curves: of some metrics, shown behind their values; none where not all of them fit.
    """
    curves = curves or {}
    groups = group_by_prefix(metrics)
    leaves = {name: name.rpartition("/")[2] for name in metrics}
    first = max(map(len, groups), default=0) + 2
    columns = list(itertools.zip_longest(*groups.values()))
    leading = [max(len(leaves[name]) for name in column if name) for column in columns]
    drawn = [max(len(curves.get(name, "")) for name in column if name) for column in columns]
    lines = []
    for prefix, names in groups.items():
        line = Text(no_wrap=True, overflow="crop").append(f"{prefix:<{first}}", "bold cyan")
        for name, column, curve in zip(names, leading, drawn, strict=False):
            cell = f"{leaves[name]:<{column}} {format_number(metrics[name]):<9} "
            if curve:
                cell += f"{curves.get(name, ''):<{curve}} "
            cell += " "
            if len(line) + len(cell.rstrip()) > width:
                if curves:
                    return layout_rows(metrics, width)
                break
            start = len(cell) - (curve + 2 if curve else 0)
            line.append(cell[:column], "dim").append(cell[column:start])
            line.append(cell[start:], "cyan")
        lines.append(line)
    return lines


def has_blocks(console: Console) -> bool:
    """Say whether a console can show the blocks that curves are drawn with."""
    return console.encoding.lower().startswith("utf")


def make_panel(name: str, text: str, when: str) -> Panel:
    """Frame a text, with its name above and its time below."""
    return Panel(
        Text(escape_control(text)),
        title=Text(f"{name}, {when}", "bold cyan"),
        title_align="left",
        border_style="dim",
        box=box.ROUNDED,
    )


def indented(name: str, text: str, when: str) -> str:
    """Lay a text out for a file: its name and time on a line, the text below.

    >>> print(indented("sample", "Once\\nupon a time", "epoch 5"))
    sample, epoch 5
        Once
        upon a time
    """
    return f"{name}, {when}\n{textwrap.indent(escape_control(text), ' ' * 4)}"


def escape_control(text: str) -> str:
    """Escape what would command a terminal and not be seen.

    >>> escape_control("a\\tb\\x1b[2J")
    'a   b\\\\x1b[2J'
    """
    return escape_lines(text.expandtabs(4).replace("\r\n", "\n"))


def _where(extreme: tuple[float, int]) -> tuple[str, str]:
    value, epoch = extreme
    return (format_number(value), str(epoch)) if math.isfinite(value) else ("", "")
