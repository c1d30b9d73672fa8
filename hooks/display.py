"""How a run looks on a console: its course so far, as a bar, a line or a table. Needs rich."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
import time
from collections.abc import Iterable, Mapping
from numbers import Real

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hooks.writers import Progress, Value

COLUMNS = 4
"""Metrics on a plain line."""

TELLING = ("loss", "accuracy", "return", "reward", "perplexity")
"""Metrics that come first, by the last part of their names."""


@dataclasses.dataclass
class Course:
    """How a metric went: its values, and the epochs of the lowest and the highest."""

    last: float = math.nan
    lowest: tuple[float, int] = (math.inf, 0)
    highest: tuple[float, int] = (-math.inf, 0)

    def add(self, value: float, epoch: int) -> None:
        """Go on to this value. One that is not a number is neither lowest nor highest."""
        self.last = value
        if value < self.lowest[0]:
            self.lowest = value, epoch
        if value > self.highest[0]:
            self.highest = value, epoch


@dataclasses.dataclass
class Run:
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
    """The newest event's metrics, without the machine's."""
    newest: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The newest value of each of these; replaced, never changed, since a thread shows it."""
    courses: dict[str, Course] = dataclasses.field(default_factory=dict)
    """Of every metric but times."""

    @classmethod
    def begun(cls, values: Mapping[str, Value]) -> Run:
        """Start with the values of a first epoch, which is over."""
        seconds, progress = values.get("time/epoch_seconds"), values.get("epoch")
        return cls(
            began=time.monotonic() - (seconds if isinstance(seconds, float) else 0.0),
            before=progress.done - 1 if isinstance(progress, Progress) else 0,
        )

    def add(self, step: int, values: Mapping[str, Value]) -> None:
        """Go on to these values."""
        progress = values.get("epoch")
        self.progress = progress if isinstance(progress, Progress) else self.progress
        self.step, self.heard = step, time.monotonic()
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, Real)}
        self.speed = numbers.get("time/steps_per_second")
        numbers = {name: value for name, value in numbers.items() if not name.startswith("time/")}
        for name, value in numbers.items():
            self.courses.setdefault(name, Course()).add(value, self.progress.done)
        self.event = {k: v for k, v in numbers.items() if not k.startswith("system/")}
        self.newest = {**self.newest, **self.event}

    def seconds_left(self) -> float:
        """Estimate the time to the end from that of the epochs so far; nan if it has no end."""
        if self.progress.total is None:
            return math.nan
        each = (self.heard - self.began) / max(self.progress.done - self.before, 1)
        left = each * (self.progress.total - self.progress.done)
        return max(left - (time.monotonic() - self.heard), 0.0)

    def count(self) -> str:
        """Say how far it is: `7/20`."""
        done, total = self.progress.done, self.progress.total
        return str(done) if total is None else f"{done:>{len(str(total))}}/{total}"

    def line(self) -> str:
        """Give this event as one line, aligned with those of other events."""
        names = [name for names in grouped(self.newest).values() for name in names]
        chosen = sorted(names, key=rank)[:COLUMNS]
        cells = [f"epoch {self.count()}"]
        if self.speed is not None:
            cells.append(f"{number(self.speed):>7} steps/s")
        for name in (name for name in names if name in chosen):
            cell = f"{name} {number(self.event[name])}" if name in self.event else ""
            cells.append(f"{cell:<{len(name) + 10}}")
        return "  ".join(cells).rstrip()

    def bar(self, width: int) -> Group:
        """Draw the progress, and below it a row of the newest metrics for each prefix."""
        done, total, left = self.progress.done, self.progress.total, self.seconds_left()
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(no_wrap=True, style="bold")
        bar.add_column(ratio=1)
        for style in ("progress.percentage", "progress.data.speed", "progress.remaining"):
            bar.add_column(no_wrap=True, style=style)
        bar.add_row(
            f"epoch {self.count()}",
            ProgressBar(total=total, completed=done),
            f"{done / total:.0%}" if total else "",
            "" if self.speed is None else f"{number(self.speed)} steps/s",
            "" if math.isnan(left) else f"{datetime.timedelta(seconds=round(left))} left",
        )
        return Group(bar, *rows(self.newest, width))

    def live(self, console: Console) -> Live:
        """Make a display of the bar that follows the run, above which others may print."""
        return Live(get_renderable=lambda: self.bar(console.width), console=console, transient=True)

    def table(self) -> Table:
        """Sum up each metric."""
        took = datetime.timedelta(seconds=round(self.heard - self.began))
        table = Table(
            title=f"{self.count()} epochs, {self.step:,} steps, {took}".strip(),
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        table.add_column("metric")
        table.add_column("last", justify="right")
        for name in ("lowest", "highest"):
            table.add_column(name, justify="right")
            table.add_column("epoch", justify="right", style="dim")
        for name in (name for names in grouped(self.courses).values() for name in names):
            course = self.courses[name]
            extremes = *_where(course.lowest), *_where(course.highest)
            table.add_row(Text(name), number(course.last), *extremes)
        return table


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names by what stands before their last part, the most telling first.

    >>> grouped(["train/norm", "train/loss", "val/accuracy", "val/loss"])
    {'train': ['train/loss', 'train/norm'], 'val': ['val/loss', 'val/accuracy']}
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition("/")[0], []).append(name)
    return {prefix: sorted(group, key=rank) for prefix, group in groups.items()}


def rank(name: str) -> int:
    """Order metrics: first what is optimised and reached."""
    leaf = name.rpartition("/")[2]
    return TELLING.index(leaf) if leaf in TELLING else len(TELLING)


def rows(metrics: Mapping[str, float], width: int) -> list[Text]:
    """Lay out metrics, a row for each prefix, in as many columns as fit."""
    groups = grouped(metrics)
    leaves = {name: name.rpartition("/")[2] for name in metrics}
    first = max(map(len, groups), default=0) + 2
    columns = [
        max(len(leaves[name]) for name in column if name)
        for column in itertools.zip_longest(*groups.values())
    ]
    lines = []
    for prefix, names in groups.items():
        line = Text(no_wrap=True, overflow="crop").append(f"{prefix:<{first}}", "bold cyan")
        for name, column in zip(names, columns, strict=False):
            cell = f"{leaves[name]:<{column}} {number(metrics[name]):<9}  "
            if len(line) + len(cell.rstrip()) > width:
                break
            line.append(cell[:column], "dim").append(cell[column:])
        lines.append(line)
    return lines


def number(value: float) -> str:
    """Write a number with four digits, a large one in full.

    >>> [number(value) for value in (0.25, 12.3456, 1234567.8, 1e-7, math.nan)]
    ['0.2500', '12.35', '1,234,568', '1.000e-07', 'nan']
    """
    if 1e3 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:#.4g}"


def _where(extreme: tuple[float, int]) -> tuple[str, str]:
    value, epoch = extreme
    return (number(value), str(epoch)) if math.isfinite(value) else ("", "")
