"""A worker's heartbeat, and the lease of what it works on, kept by a thread."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator

from trainer.evaluators.liveness import (
    HEARTBEAT_SECONDS,
    WorkerRow,
    record_heartbeat,
    remove_worker,
)
from trainer.runs.requests import extend_lease
from trainer.runs.rows import Request
from trainer.runs.sql.connection import Unreachable
from trainer.runs.store_client import StoreClient

log = logging.getLogger("entracte")


class LeaseKeeper:
    """Keeps a worker's lease and its row in the store, whatever the worker itself is busy with.

    Args:
        url: of the store.
        worker: name of the worker.
        lease: seconds; it is extended after a third of them.
        limit: seconds after which the lease of a request is no longer extended; None has no limit.
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
            "the lease of epoch %d of run %r expired, or is no longer extended, or the evaluation "
            "was requested again, while it was being evaluated: its result is dropped",
            request.epoch,
            request.run,
        )
