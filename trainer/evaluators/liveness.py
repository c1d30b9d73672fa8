"""Signs of life that evaluators leave in the store, for those who watch."""

from __future__ import annotations

from typing import NamedTuple

from trainer.runs.store import Store
from trainer.runs.text import clean

HEARTBEAT_SECONDS = 10.0
"""Seconds between two signs at most."""

FORGOTTEN = 86400.0
"""Seconds without a sign after which a worker that did not sign off is left out for good."""


class WorkerRow(NamedTuple):
    """An evaluator, as the store knows it. One that has ended properly is not on record."""

    name: str
    host: str
    pid: int
    beat: float
    """When it last gave a sign of life, unix seconds by the store's clock."""
    doing: str
    """`waiting`, or what it evaluates."""
    done: int
    """Requests that it has answered."""


_COLUMNS = ", ".join(WorkerRow._fields)


def record_heartbeat(
    store: Store, name: str, *, host: str, pid: int, doing: str, done: int
) -> None:
    """Note a worker's sign of life."""
    values = (name, clean(host), pid, store.connection.now(), clean(doing), done)
    store.connection.execute(
        f"INSERT INTO workers ({_COLUMNS}) VALUES ({', '.join('?' * len(values))}) "
        "ON CONFLICT (name) DO UPDATE SET "
        "beat = excluded.beat, doing = excluded.doing, done = excluded.done",
        values,
    )


def sign_off(store: Store, name: str) -> None:
    """Note that a worker ends; those that died long ago are forgotten with it."""
    store.connection.execute(
        "DELETE FROM workers WHERE name = ? OR beat < ?",
        (name, store.connection.now() - FORGOTTEN),
    )


def workers(store: Store) -> list[WorkerRow]:
    """Give the evaluators that are on record, by name.

    One that was killed stays there for a while: its `beat` is more than some `HEARTBEAT_SECONDS`
    old.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
    ...     record_heartbeat(store, "ann", host="here", pid=7, doing="waiting", done=3)
    ...     [(row.name, row.doing, row.done) for row in workers(store)]
    [('ann', 'waiting', 3)]
    """
    rows = store.connection.execute(f"SELECT {_COLUMNS} FROM workers ORDER BY name")
    return [WorkerRow._make(row) for row in rows]
