"""The command `watch`: how runs and evaluators are, now and as it changes."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from trainer.commands.lookup.scores import choose_key_metrics
from trainer.commands.lookup.stores import (
    RunNames,
    find_runs,
    infer_store,
    open_store,
    resolve_store,
)
from trainer.commands.terminal.calling import CommandError
from trainer.commands.terminal.output import make_console, print_json, state_text
from trainer.evaluators.liveness import HEARTBEAT_SECONDS, WorkerRow, list_workers
from trainer.host.amounts import format_age, format_duration, format_progress
from trainer.host.escaping import escape_text
from trainer.host.rich_tables import Column, make_table, safe_text
from trainer.runs.panels import HOOK_PREFIX
from trainer.runs.requests import list_requests
from trainer.runs.rows import RunRow
from trainer.runs.sparklines import format_number
from trainer.runs.store import Store

SECONDS = 1.0
"""Between two looks."""

RECENT = 10
"""Epochs, the last, whose newest values are shown."""

METRICS = 3
"""Columns of metrics."""

BAR = 12
"""Characters of a bar."""

FAILED, STALLED = 1, 3
"""Exit statuses, see `watch`."""

MISSED = 3
"""Signs of life in a row after which an evaluator is taken to be gone."""


class WatchedRun(NamedTuple):
    """A run as it is now."""

    row: RunRow
    state: str
    newest: dict[str, float]


class WatchSnapshot(NamedTuple):
    """What is seen at a look."""

    now: float
    """Unix seconds, by the store's clock."""
    runs: list[WatchedRun]
    workers: list[WorkerRow]
    requests: Counter[str]
    """How many are in which state."""


def watch(
    runs: RunNames = (),
    /,
    *,
    store: str | None = None,
    once: bool = False,
    until: Literal["finished"] | None = None,
    json: bool = False,
) -> int:
    """Watch runs and evaluators live; a run that gives no sign of life is said to have stalled.

    It goes on until Ctrl-C, or as --once and --until say. Exit status, for scripts: 0, all that was
    watched has finished, or goes on; 1, a run has failed or was interrupted; 3, none of these, but
    a run has stalled.

    Args:
        runs: names in the store, or paths of runs' directories; all that are going on, and those
            that begin, if none are given.
        store: directory of the runs, file *.sqlite, or postgresql://USER@HOST/DATABASE; else
            $ENTRACTE_STORE, else runs/.
        once: look once.
        until: go on until none of the runs is running any more.
        json: print JSON once, with --until at the end.
    """
    stores = {
        os.path.realpath(resolve_store(one)): one
        for one in (infer_store(run, store) for run in runs)
    }
    if len(stores) > 1:
        raise CommandError(
            f"these runs are in several stores, watch one: {escape_text(', '.join(stores))}"
        )
    console = make_console()
    seen = poll_snapshots(next(iter(stores.values()), store), runs, until)
    view, away = next(seen)
    if json:
        for later, _ in seen if until else ():
            view = later
        print_json(_data(view))
    elif once:
        console.print(render_snapshot(view, console.width))
    else:
        with Live(
            render_snapshot(view, console.width), console=console, auto_refresh=False
        ) as live:
            for view, away in seen:
                live.update(render_snapshot(view, console.width, away), refresh=True)
        if not console.is_terminal:  # where Live leaves its last line open
            console.print()
    return status([one.state for one in view.runs])


def poll_snapshots(
    store: str | None, names: Sequence[str], until: str | None
) -> Iterator[tuple[WatchSnapshot, str]]:
    """Look again and again, as `watch` does.

    Yields:
        What is seen, and, where that is of an earlier look, why.

    Raises:
        Refused: at the first look, there is no such run, or the store cannot be reached.
    """
    view, away = take_snapshot(store, names, ()), ""
    while True:
        yield view, away
        if until is not None and not any(one.state == "running" for one in view.runs):
            return
        time.sleep(SECONDS)
        try:
            view, away = take_snapshot(store, names, {one.row.name for one in view.runs}), ""
        except CommandError as refusal:  # a server restarts
            away = str(refusal)


def status(states: Collection[str]) -> int:
    """Give the exit status.

    >>> status([]), status(["finished", "stalled"]), status(["failed", "stalled"])
    (0, 3, 1)
    """
    if {"failed", "interrupted"} & set(states):
        return FAILED
    return STALLED if "stalled" in states else 0


def take_snapshot(
    store: str | None, names: Sequence[str], watched: Collection[str]
) -> WatchSnapshot:
    """See how runs and evaluators are.

    Args:
        store: as it was named.
        names: of the runs; all that are on record as running, and those watched before, where
            there is none.
        watched: names of those watched before.

    Raises:
        Refused: there is no such run, or the store cannot be reached.
    """
    with open_store(store) as there:
        now = there.connection.now()
        going = (row for row in there.runs() if row.state == "running" or row.name in watched)
        rows = find_runs(there, names) if names else [there.read_progress(row) for row in going]
        return WatchSnapshot(
            now,
            [WatchedRun(row, row.status(now), _newest(there, row)) for row in rows],
            list_workers(there),
            Counter(request.state for request in list_requests(there)),
        )


def _newest(store: Store, row: RunRow) -> dict[str, float]:
    records = store.records(row.name, since=max(row.epoch - RECENT + 1, 0))
    return {name: value for name, _, _, value in records if not isinstance(value, str)}


def render_snapshot(view: WatchSnapshot, width: int, away: str = "") -> Group:
    """Draw a view.

    Args:
        view: to draw.
        width: of the console, in characters.
        away: why it is not of now, if it is not.
    """
    parts: list[RenderableType] = []
    if view.runs:
        parts.append(_runs(view, width))
    else:
        parts.append(safe_text("no run is going on", "dim"))
    if view.workers:
        parts += [Text(), _workers(view, width)]
    if view.requests:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(view.requests.items()))
        parts += [Text(), safe_text(f"evaluations asked for: {counts}", "dim")]
    if away:
        parts += [
            Text(),
            safe_text(f"seen {format_age(max(time.time() - view.now, 1))}: {away}", "yellow"),
        ]
    return Group(*parts)


def _runs(view: WatchSnapshot, width: int) -> RenderableType:
    runs = view.runs
    names = choose_key_metrics({name for one in runs for name in one.newest}, METRICS)
    left = [_left(one) for one in runs]
    columns = [
        Column("run", [safe_text(one.row.name, "bold") for one in runs], priority=9, fold_width=24),
        Column("state", [state_text(one.state) for one in runs], priority=9),
        Column(
            "epoch",
            [safe_text(format_progress(one.row.epoch, one.row.epochs)) for one in runs],
            "right",
            8,
        ),
        Column("", [_bar(one.row) for one in runs], priority=3),
        Column(
            "left", [safe_text("" if s is None else format_duration(s)) for s in left], "right", 5
        ),
        *(
            Column(
                name, [safe_text(_number(one.newest.get(name))) for one in runs], "right", 6 - place
            )
            for place, name in enumerate(names)
        ),
        Column("last sign", [_sign(one, view.now) for one in runs], "right", 7),
        Column("host", [safe_text(one.row.host, "dim") for one in runs], priority=1),
    ]
    return make_table(columns, width)


def _workers(view: WatchSnapshot, width: int) -> RenderableType:
    rows = view.workers
    silent = [view.now - row.beat > MISSED * HEARTBEAT_SECONDS for row in rows]
    signs = [
        safe_text(format_age(view.now - row.beat), "bold yellow" if gone else "")
        for row, gone in zip(rows, silent, strict=True)
    ]
    columns = [
        Column(
            "evaluator", [safe_text(row.name, "bold") for row in rows], priority=9, fold_width=24
        ),
        Column("doing", [safe_text(row.doing) for row in rows], priority=8, fold_width=24),
        Column("done", [safe_text(f"{row.done:,}") for row in rows], "right", 6),
        Column("last sign", signs, "right", 7),
        Column("host", [safe_text(row.host, "dim") for row in rows], priority=1),
    ]
    return make_table(columns, width)


def _bar(row: RunRow) -> Text:
    if not row.epochs:
        return Text()
    full = min(BAR * row.epoch // row.epochs, BAR)
    return Text("━" * full, "cyan").append("─" * (BAR - full), "dim")


def _left(one: WatchedRun) -> float | None:
    """Estimate the seconds that are left from the last epoch's time, and that of its hooks."""
    training = one.newest.get("time/epoch_seconds")
    if one.state != "running" or one.row.epochs is None or training is None:
        return None
    hooks = sum(value for name, value in one.newest.items() if name.startswith(HOOK_PREFIX))
    return (training + hooks) * max(one.row.epochs - one.row.epoch, 0)


def _sign(one: WatchedRun, now: float) -> Text:
    return safe_text(
        format_age(now - one.row.beat), "bold yellow" if one.state == "stalled" else ""
    )


def _number(value: float | None) -> str:
    return "" if value is None else format_number(value)


def _data(view: WatchSnapshot) -> dict[str, Any]:
    return {
        "runs": [
            {
                "name": one.row.name,
                "state": one.state,
                "error": one.row.error,
                "epoch": one.row.epoch,
                "epochs": one.row.epochs,
                "step": one.row.step,
                "seconds_since_sign": view.now - one.row.beat,
                "metrics": one.newest,
            }
            for one in view.runs
        ],
        "evaluators": [
            row._asdict() | {"seconds_since_sign": view.now - row.beat} for row in view.workers
        ],
        "evaluations": dict(view.requests),
    }
