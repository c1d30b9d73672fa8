"""A worker's pulse: signs of life, and the lease of what it works on, kept by a thread."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator

from trainer.evaluators import liveness
from trainer.evaluators.store_client import StoreClient
from trainer.runs.connections import Unreachable
from trainer.runs.requests import extend
from trainer.runs.rows import Request

log = logging.getLogger("entracte")


class LeaseKeeper:
    """Keeps a worker's lease and its place in the store, whatever the worker itself is busy with.

    Args:
        url: of the store.
        worker: name of the worker.
        lease: seconds; a third of them goes by between two extensions.
        limit: seconds after which a request is kept no longer; None keeps it.
    """

    def __init__(self, url: str, worker: str, *, lease: float, limit: float | None = None) -> None:
        self._link, self._worker, self._lease = StoreClient(url), worker, lease
        self._limit = float("inf") if limit is None else limit
        self._request: Request | None = None
        self._since = 0.0
        self._doing, self._done, self._lost = "waiting", 0, False
        self._guard, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="entracte-pulse", daemon=True)

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        self._link.close()  # it may be broken, if the store was away since the last sign
        with contextlib.suppress(Unreachable):
            self._link.call(liveness.sign_off, self._worker)
        self._link.close()

    @contextlib.contextmanager
    def holding(self, request: Request, doing: str) -> Iterator[None]:
        """Keep a request while the block runs, and tell what is being done."""
        with self._guard:
            self._request, self._doing, self._lost = request, doing, False
            self._since = time.monotonic()
        try:
            yield
        finally:
            with self._guard:
                self._request, self._doing = None, "waiting"

    def answered(self) -> None:
        """Count a request that was answered."""
        with self._guard:
            self._done += 1

    def _work(self) -> None:
        while not self._ended.is_set():
            try:
                self._beat()
            except Unreachable:
                pass  # the worker itself tells of it; the lease may still be long enough
            except Exception:
                log.exception("the lease of worker %r could not be extended", self._worker)
            self._ended.wait(min(self._lease / 3, liveness.HEARTBEAT_SECONDS))

    def _beat(self) -> None:
        with self._guard:
            request, doing, done = self._request, self._doing, self._done
            hangs = time.monotonic() - self._since > self._limit
        if request and (hangs or not self._link.call(extend, request, lease=self._lease)):
            self._tell_of_loss(request)
        host, pid = socket.gethostname(), os.getpid()
        self._link.call(
            liveness.record_heartbeat, self._worker, host=host, pid=pid, doing=doing, done=done
        )

    def _tell_of_loss(self, request: Request) -> None:
        with self._guard:
            if self._lost or self._request is not request:  # it was answered just now
                return
            self._lost = True
        log.warning(
            "the lease of epoch %d of run %r ran out, or is extended no longer, or it was asked "
            "for anew, while it was being evaluated: what comes of it is dropped",
            request.epoch,
            request.run,
        )
