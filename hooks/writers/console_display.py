"""How a run looks on a console: as a bar, a line or a table. Needs rich."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hooks.writers.console_layout import LONG, describe_activity, layout_rows
from hooks.writers.values import Progress, Value
from trainer.host.amounts import format_duration
from trainer.host.rendering.panels import CONFUSION
from trainer.host.rendering.rich_tables import Column, make_table, safe_text
from trainer.host.rendering.sparklines import (
    MAIN_METRICS,
    MetricSummary,
    format_number,
    group_by_prefix,
    rank_metric,
)
from trainer.host.time_spans import OpenSpan, list_open_spans

COLUMNS = 4
"""Metrics on a plain line."""

TABLE_ONLY = ("system/", "gradients/")
"""Prefixes of metrics that only the table shows: those of the machine and of layers."""

CURVE = 10
"""Characters of a curve in the bar; in the table up to twice as many."""


class Standing(NamedTuple):
    """How far a run is."""

    done: float
    """Epochs, with a part of the current one."""
    percent: str
    speed: str
    left: str
    activity: str
    """What it is doing, if that takes long."""


@dataclasses.dataclass
class RunDisplay:
    """What is known of a run, and how it looks."""

    began: float
    """When its first epoch began, in seconds of `time.monotonic`."""
    epochs_before: int
    """Epochs completed then."""
    updated: float = 0.0
    """When it was updated last, in seconds of `time.monotonic`."""
    step: int = 0
    progress: Progress = dataclasses.field(default_factory=lambda: Progress(0))
    speed: float | None = None
    """Steps per second."""
    event: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The newest event's metrics, without those that only the table shows."""
    newest: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The newest value of each of these; replaced, never mutated, since a thread reads it."""
    summaries: dict[str, MetricSummary] = dataclasses.field(default_factory=dict)
    """Of every metric except times and the cells of confusion matrices."""
    thread: int | None = None
    """The run's thread, if its activity is shown."""

    @classmethod
    def from_values(cls, values: Mapping[str, Value]) -> RunDisplay:
        """Start with the values of a first epoch, which is over, or with those before it."""
        progress = values.get("epoch")
        before = max(progress.done - 1, 0) if isinstance(progress, Progress) else 0
        return cls(began=time.monotonic(), epochs_before=before)

    def add(self, step: int, values: Mapping[str, Value]) -> None:
        """Update with the values of an event."""
        progress = values.get("epoch")
        self.progress = progress if isinstance(progress, Progress) else self.progress
        self.step, self.updated = step, time.monotonic()
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, Real)}
        self.speed = numbers.get("time/steps_per_second", self.speed)
        self.began = min(self.began, self.updated - numbers.get("time/epoch_seconds", 0.0))
        numbers = {
            name: value
            for name, value in numbers.items()
            if not name.startswith("time/") and not CONFUSION.search(name)
        }
        for name, value in numbers.items():
            self.summaries.setdefault(name, MetricSummary()).add(value, self.progress.done)
        self.event = {k: v for k, v in numbers.items() if not k.startswith(TABLE_ONLY)}
        self.newest = {**self.newest, **self.event}

    def seconds_left(self, open_spans: Sequence[OpenSpan] = ()) -> float:
        """Estimate the time to the end from the epochs so far, or else from the steps so far.

        Returns nan before there are some, and for a run without an end.
        """
        if self.progress.total is None:
            return math.nan
        if math.isinf(self.began):
            part = self.epoch_fraction(open_spans)
            if not part or open_spans[0].seconds < LONG:
                return math.nan
            return open_spans[0].seconds / part * (self.progress.total - self.progress.done - part)
        left = self.epoch_seconds() * (self.progress.total - self.progress.done)
        return max(left - (time.monotonic() - self.updated), 0.0)

    def epoch_seconds(self) -> float:
        """Return the mean time of the epochs so far; nan before the first is over."""
        if math.isinf(self.began):
            return math.nan
        return (self.updated - self.began) / max(self.progress.done - self.epochs_before, 1)

    def epoch_fraction(self, open_spans: Sequence[OpenSpan]) -> float:
        """Estimate which part of the current epoch is done, by earlier epochs or else by steps."""
        number = self.progress.done + 1  # or it is over, and its hooks run
        if not open_spans or (open_spans[0].kind, open_spans[0].number) != ("epoch", number):
            return 0.0
        mean, steps = self.epoch_seconds(), open_spans[0].steps
        if not math.isnan(mean):
            part = open_spans[0].seconds / mean if mean > 0 else 0.0
        else:
            totals = [phase.total or math.inf for phase in steps]
            part = sum(phase.done for phase in steps) / sum(totals) if totals else 0.0
        return min(part, 0.99)

    def format_epoch(self) -> str:
        """Format how far it is: `7/20`."""
        done, total = self.progress.done, self.progress.total
        return str(done) if total is None else f"{done:>{len(str(total))}}/{total}"

    def line(self) -> str:
        """Return this event as one line, aligned with those of other events."""
        names = [name for names in group_by_prefix(self.newest).values() for name in names]
        chosen = sorted(names, key=rank_metric)[:COLUMNS]
        cells = [f"epoch {self.format_epoch()}"]
        if self.speed is not None:
            cells.append(f"{format_number(self.speed):>7} steps/s")
        for name in (name for name in names if name in chosen):
            cell = f"{name} {format_number(self.event[name])}" if name in self.event else ""
            cells.append(f"{cell:<{len(name) + 10}}")
        return "  ".join(cells).rstrip()

    def standing(self) -> Standing:
        """Describe how far it is."""
        open_spans = [] if self.thread is None else list_open_spans(self.thread)
        total, left = self.progress.total, self.seconds_left(open_spans)
        done = self.progress.done + self.epoch_fraction(open_spans)
        most = 1 if self.progress.done == total else 0.99
        return Standing(
            done,
            f"{min(done / total, most):.0%}" if total else "",
            "" if self.speed is None else f"{format_number(self.speed)} steps/s",
            f"{format_duration(max(round(left), 1))} left" if left > 0 else "",
            describe_activity(open_spans),
        )

    def bar(self, width: int, *, curves: bool = True) -> Group:
        """Draw the progress, and below it a row of the newest metrics, and curves, per prefix."""
        standing, total = self.standing(), self.progress.total
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(no_wrap=True, style="bold")
        bar.add_column(ratio=1)
        for style in ("progress.percentage", "progress.data.speed", "progress.remaining"):
            bar.add_column(no_wrap=True, style=style)
        bar.add_row(
            f"epoch {self.format_epoch()}",
            ProgressBar(total=total, completed=standing.done),
            standing.percent,
            standing.speed,
            standing.left,
        )
        newest = self.newest
        drawn = {
            name: self.summaries[name].sparkline(CURVE)
            for name in newest
            if curves and rank_metric(name) < len(MAIN_METRICS)
        }
        activity = standing.activity
        lines = [Text(activity, "dim", no_wrap=True, overflow="ellipsis")] if activity else []
        return Group(bar, *lines, *layout_rows(newest, width, drawn))

    def live(self, console: Console) -> Live:
        """Make a display of the bar that follows the run, above which others may print."""
        curves = not console.options.ascii_only
        return Live(
            get_renderable=lambda: self.bar(console.width, curves=curves),
            console=console,
            transient=True,
        )

    def render_summary(self, console: Console) -> Table:
        """Render the table, with curves as wide as there is room for."""
        room = console.width - console.measure(self.table(console.width)).maximum - 3
        draws = not console.options.ascii_only and room >= len("course")
        return self.table(console.width, curve=min(room, 2 * CURVE) if draws else 0)

    def table(self, width: int, *, curve: int = 0) -> Table:
        """Summarize each metric in a row, with a curve of so many characters."""
        names = [name for names in group_by_prefix(self.summaries).values() for name in names]
        found = [self.summaries[name] for name in names]
        columns = [
            Column("metric", list(map(safe_text, names)), priority=9, fold_width=20),
            Column("last", [safe_text(format_number(one.last)) for one in found], "right", 8),
        ]
        for head in ("lowest", "highest"):
            extremes = [getattr(one, head) for one in found]
            shown = [
                (format_number(v), str(e)) if math.isfinite(v) else ("", "") for v, e in extremes
            ]
            columns.append(Column(head, [safe_text(value) for value, _ in shown], "right", 7))
            columns.append(Column("epoch", [safe_text(e, "dim") for _, e in shown], "right", 6))
        if curve:
            columns.append(Column("course", [Text(one.sparkline(curve), "cyan") for one in found]))
        return make_table(columns, width, title=self.title())

    def title(self) -> str:
        """Return how far the run came, and how long it took."""
        took = format_duration(self.updated - self.began, digits=3)
        return f"{self.format_epoch()} epochs, {self.step:,} steps, {took}".strip()
