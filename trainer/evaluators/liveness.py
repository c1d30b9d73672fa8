"""Heartbeats that evaluators write to the store, for those who watch."""

from __future__ import annotations

from typing import NamedTuple

from trainer.runs.sql.statements import upsert
from trainer.runs.store import Store
from trainer.runs.text import clean

HEARTBEAT_SECONDS = 10.0
"""Seconds between two heartbeats at most."""

FORGET_SECONDS = 86400.0
"""Seconds without a heartbeat after which the row of a killed worker is deleted."""


class WorkerRow(NamedTuple):
    """A recorded evaluator. One that ends properly deletes its row."""

    name: str
    host: str
    pid: int
    beat: float
    """Time of its last heartbeat, unix seconds by the store's clock."""
    doing: str
    """`waiting`, or what it evaluates."""
    done: int
    """Requests that it has answered."""


def record_heartbeat(store: Store, worker: WorkerRow) -> None:
    """Record a worker's heartbeat, now."""
    row = worker._replace(
        host=clean(worker.host), doing=clean(worker.doing), beat=store.connection.now()
    )
    updated = ("beat", "doing", "done")
    store.connection.execute(upsert("workers", WorkerRow._fields, ("name",), updated), row)


def remove_worker(store: Store, name: str) -> None:
    """Delete the row of a worker that ends, and those of workers that died long ago."""
    store.connection.execute(
        "DELETE FROM workers WHERE name = ? OR beat < ?",
        (name, store.connection.now() - FORGET_SECONDS),
    )


def list_workers(store: Store) -> list[WorkerRow]:
    """Return the recorded evaluators, by name.

    One that was killed stays for a while: its `beat` is several `HEARTBEAT_SECONDS` old.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
    ...     record_heartbeat(store, WorkerRow("ann", "here", 7, 0.0, "waiting", 3))
    ...     [(row.name, row.doing, row.done) for row in list_workers(store)]
    [('ann', 'waiting', 3)]
    """
    columns = ", ".join(WorkerRow._fields)
    rows = store.connection.execute(f"SELECT {columns} FROM workers ORDER BY name")
    return [WorkerRow._make(row) for row in rows]
