"""Tables of runs and evaluators, for `watch`."""

from __future__ import annotations

import time

from rich.console import Group, RenderableType
from rich.text import Text

from trainer.commands.lookup.scores import choose_key_metrics
from trainer.commands.lookup.snapshots import WatchedRun, WatchSnapshot
from trainer.commands.terminal.output import state_text
from trainer.evaluators.liveness import HEARTBEAT_SECONDS
from trainer.host.amounts import format_age, format_duration, format_progress
from trainer.host.rich_tables import Column, make_table, safe_text
from trainer.runs.panels import HOOK_PREFIX
from trainer.runs.rows import RunRow
from trainer.runs.sparklines import format_number

METRICS = 3
"""Columns of metrics."""

BAR = 12
"""Characters of a progress bar."""

MISSED = 3
"""Missed heartbeats in a row after which an evaluator counts as gone."""


def render_snapshot(snapshot: WatchSnapshot, width: int, problem: str = "") -> Group:
    """Render a snapshot.

    Args:
        snapshot: to render.
        width: of the console, in characters.
        problem: why there is no newer snapshot, if there is none.
    """
    parts: list[RenderableType] = []
    if snapshot.runs:
        parts.append(_make_run_table(snapshot, width))
    else:
        parts.append(safe_text("no run is in progress", "dim"))
    if snapshot.workers:
        parts += [Text(), _make_evaluator_table(snapshot, width)]
    if snapshot.requests:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(snapshot.requests.items()))
        parts += [Text(), safe_text(f"requested evaluations: {counts}", "dim")]
    if problem:
        seen = format_age(max(time.time() - snapshot.now, 1))
        parts += [Text(), safe_text(f"seen {seen}: {problem}", "yellow")]
    return Group(*parts)


def _make_run_table(snapshot: WatchSnapshot, width: int) -> RenderableType:
    runs = snapshot.runs
    rows = [run.row for run in runs]
    names = choose_key_metrics({name for run in runs for name in run.newest}, METRICS)
    progress = [safe_text(format_progress(row.epoch, row.epochs)) for row in rows]
    left = [_estimate_seconds_left(run) for run in runs]
    heartbeats = [
        safe_text(
            format_age(snapshot.now - run.row.beat),
            "bold yellow" if run.state == "stalled" else "",
        )
        for run in runs
    ]
    metrics = [
        Column(name, [_format_newest(run, name) for run in runs], "right", 6 - place)
        for place, name in enumerate(names)
    ]
    columns = [
        Column("run", [safe_text(row.name, "bold") for row in rows], priority=9, fold_width=24),
        Column("state", [state_text(run.state) for run in runs], priority=9),
        Column("epoch", progress, "right", 8),
        Column("", [_draw_bar(row) for row in rows], priority=3),
        Column("left", [safe_text(format_duration(s) if s else "") for s in left], "right", 5),
        *metrics,
        Column("last heartbeat", heartbeats, "right", 7),
        Column("host", [safe_text(row.host, "dim") for row in rows], priority=1),
    ]
    return make_table(columns, width)


def _make_evaluator_table(snapshot: WatchSnapshot, width: int) -> RenderableType:
    rows = snapshot.workers
    ages = [snapshot.now - row.beat for row in rows]
    heartbeats = [
        safe_text(format_age(age), "bold yellow" if age > MISSED * HEARTBEAT_SECONDS else "")
        for age in ages
    ]
    names = [safe_text(row.name, "bold") for row in rows]
    columns = [
        Column("evaluator", names, priority=9, fold_width=24),
        Column("doing", [safe_text(row.doing) for row in rows], priority=8, fold_width=24),
        Column("done", [safe_text(f"{row.done:,}") for row in rows], "right", 6),
        Column("last heartbeat", heartbeats, "right", 7),
        Column("host", [safe_text(row.host, "dim") for row in rows], priority=1),
    ]
    return make_table(columns, width)


def _draw_bar(row: RunRow) -> Text:
    if not row.epochs:
        return Text()
    full = min(BAR * row.epoch // row.epochs, BAR)
    return Text("━" * full, "cyan").append("─" * (BAR - full), "dim")


def _estimate_seconds_left(run: WatchedRun) -> float | None:
    """Estimate the seconds left from the time of the last epoch and its hooks."""
    training = run.newest.get("time/epoch_seconds")
    if run.state != "running" or run.row.epochs is None or training is None:
        return None
    hooks = sum(value for name, value in run.newest.items() if name.startswith(HOOK_PREFIX))
    return (training + hooks) * max(run.row.epochs - run.row.epoch, 0)


def _format_newest(run: WatchedRun, name: str) -> Text:
    return safe_text(format_number(run.newest[name]) if name in run.newest else "")
