"""Snapshots of runs and evaluators, for `watch`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from trainer.commands.lookup.stores import find_runs, open_store
from trainer.evaluators.liveness import WorkerRow, list_workers
from trainer.runs.requests import list_requests
from trainer.runs.rows import RunRow
from trainer.runs.store import Store

RECENT = 10
"""Last epochs whose newest values are shown."""


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
    """Read the present state of runs and evaluators.

    Args:
        store: as named.
        names: of the runs; if empty, all running ones, and those watched before.
        watched: names of those watched before.

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
