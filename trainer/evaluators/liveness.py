"""A worker's liveness: the lease of its request, and its heartbeat for those who watch."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from trainer.runs.requests import extend_lease
from trainer.runs.rows import Request
from trainer.runs.sql.connection import Unreachable, upsert
from trainer.runs.store import Store
from trainer.runs.store_client import StoreClient
from trainer.runs.text import clean

log = logging.getLogger("entracte")

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


class LeaseKeeper:
    """Keeps a worker's lease and its row in the store, whatever the worker itself is busy with.

    It extends the lease after a third of its seconds, but that of one request no longer than
    `limit` seconds; None has no limit.
    """

    def __init__(self, url: str, worker: str, *, lease: float, limit: float | None = None) -> None:
        self._client, self._worker, self._lease = StoreClient(url), worker, lease
        self._limit = float("inf") if limit is None else limit
        self._request: Request | None = None
        self._since = 0.0
        self._doing, self._done, self._lost = "waiting", 0, False
        self._guard, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="entracte-lease", daemon=True)

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()  # it may be broken, if the store was away since the last heartbeat
        with contextlib.suppress(Unreachable):
            self._client.call(remove_worker, self._worker)
        self._client.close()

    @contextlib.contextmanager
    def holding(self, request: Request, doing: str) -> Iterator[None]:
        """Keep the lease of a request during the block, and record what is being done."""
        with self._guard:
            self._request, self._doing, self._lost = request, doing, False
            self._since = time.monotonic()
        try:
            yield
        finally:
            with self._guard:
                self._request, self._doing = None, "waiting"

    def count_answer(self) -> None:
        """Count a request that was answered."""
        with self._guard:
            self._done += 1

    def _work(self) -> None:
        while not self._ended.is_set():
            try:
                self._send_heartbeat()
            except Unreachable:
                pass  # the worker itself reports it; the lease may still be long enough
            except Exception:
                log.exception("the lease of worker %r could not be extended", self._worker)
            self._ended.wait(min(self._lease / 3, HEARTBEAT_SECONDS))

    def _send_heartbeat(self) -> None:
        with self._guard:
            request, doing, done = self._request, self._doing, self._done
            hangs = time.monotonic() - self._since > self._limit
        if request and (hangs or not self._client.call(extend_lease, request, lease=self._lease)):
            self._report_loss(request)
        row = WorkerRow(self._worker, socket.gethostname(), os.getpid(), 0, doing, done)
        self._client.call(record_heartbeat, row)

    def _report_loss(self, request: Request) -> None:
        with self._guard:
            if self._lost or self._request is not request:  # it was answered just now
                return
            self._lost = True
        log.warning(
            f"the lease of epoch {request.epoch} of run {request.run!r} expired, or is no longer "
            "extended, or the evaluation was requested again, while it was being evaluated: its "
            "result is dropped"
        )
