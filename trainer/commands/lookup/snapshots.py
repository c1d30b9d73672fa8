"""Snapshots of runs and evaluators, for `watch`: take one, and show it as tables."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from trainer.commands.lookup.scores import choose_key_metrics, make_score_columns
from trainer.commands.lookup.stores import find_runs, open_store
from trainer.commands.terminal.output import state_text
from trainer.evaluators.liveness import HEARTBEAT_SECONDS, WorkerRow, list_workers
from trainer.host.amounts import format_age, format_duration, format_progress
from trainer.host.rendering.panels import HOOK_PREFIX
from trainer.host.rendering.rich_tables import Column, make_table, safe_text
from trainer.runs.requests import list_requests
from trainer.runs.rows import RunRow
from trainer.runs.store import Store

RECENT = 10
"""Last epochs whose newest values are shown."""

METRICS = 3
"""Columns of metrics."""

BAR = 12
"""Characters of a progress bar."""

MISSED = 3
"""Missed heartbeats in a row after which an evaluator counts as gone."""


class WatchedRun(NamedTuple):
    """The present state of a run."""

    row: RunRow
    state: str
    newest: dict[str, float]


class WatchSnapshot(NamedTuple):
    """The present state of runs and evaluators."""

    now: float
    """Unix seconds, by the store's clock."""
    runs: list[WatchedRun]
    workers: list[WorkerRow]
    requests: Counter[str]
    """Number of evaluation requests by state."""


def take_snapshot(
    store: str | None, names: Sequence[str], watched: Collection[str]
) -> WatchSnapshot:
    """Read the present state of evaluators and of the named runs.

    Without names these are the running ones, and those that were watched before.

    Raises:
        CommandError: there is no such run, or the store cannot be reached.
    """
    with open_store(store) as opened:
        now = opened.connection.now()
        running = (row for row in opened.runs() if row.state == "running" or row.name in watched)
        rows = find_runs(opened, names) if names else [opened.read_progress(row) for row in running]
        return WatchSnapshot(
            now,
            [WatchedRun(row, row.status(now), _read_newest(opened, row)) for row in rows],
            list_workers(opened),
            Counter(request.state for request in list_requests(opened)),
        )


def _read_newest(store: Store, row: RunRow) -> dict[str, float]:
    records = store.records(row.name, since=max(row.epoch - RECENT + 1, 0))
    return {name: value for name, _, _, value in records if not isinstance(value, str)}


def render_snapshot(snapshot: WatchSnapshot, width: int, problem: str = "") -> Group:
    """Render a snapshot in `width` characters, and the problem that prevents a newer one."""
    parts: list[RenderableType] = [
        _make_run_table(snapshot, width)
        if snapshot.runs
        else safe_text("no run is in progress", "dim")
    ]
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
    beats = [_format_heartbeat(snapshot.now - r.row.beat, late=r.state == "stalled") for r in runs]
    columns = [
        Column("run", [safe_text(row.name, "bold") for row in rows], priority=9, fold_width=24),
        Column("state", [state_text(run.state) for run in runs], priority=9),
        Column("epoch", progress, "right", 8),
        Column("", [_draw_bar(row) for row in rows], priority=3),
        Column("left", [safe_text(format_duration(s) if s else "") for s in left], "right", 5),
        *make_score_columns([run.newest for run in runs], names, mark_best=False),
        Column("last heartbeat", beats, "right", 7),
        Column("host", [safe_text(row.host, "dim") for row in rows], priority=1),
    ]
    return make_table(columns, width)


def _make_evaluator_table(snapshot: WatchSnapshot, width: int) -> RenderableType:
    rows = snapshot.workers
    ages = [snapshot.now - row.beat for row in rows]
    beats = [_format_heartbeat(age, late=age > MISSED * HEARTBEAT_SECONDS) for age in ages]
    names = [safe_text(row.name, "bold") for row in rows]
    columns = [
        Column("evaluator", names, priority=9, fold_width=24),
        Column("doing", [safe_text(row.doing) for row in rows], priority=8, fold_width=24),
        Column("done", [safe_text(f"{row.done:,}") for row in rows], "right", 6),
        Column("last heartbeat", beats, "right", 7),
        Column("host", [safe_text(row.host, "dim") for row in rows], priority=1),
    ]
    return make_table(columns, width)


def _format_heartbeat(age: float, *, late: bool) -> Text:
    return safe_text(format_age(age), "bold yellow" if late else "")


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
