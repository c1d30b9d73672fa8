"""A thread that delivers a queue to a store, and retries while the store is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from trainer.host.redaction import redact_text
from trainer.runs.delivery import deliver
from trainer.runs.disk_queue import DiskQueue, QueueClosed
from trainer.runs.store_client import StoreClient

RETRY_SECONDS = (0.5, 30.0)
"""Seconds until a store that did not answer is tried again: at first, and at most."""

TIMEOUT = 5.0
"""Seconds to wait for a server, or for a lock, at each try."""

BATCH_SECONDS = 0.05
"""Seconds in which lines collect before they are delivered together."""


class DeliveryThread:
    """A thread that delivers a queue to a store. Training never waits for it.

    Args:
        url: of the store.
        queue: to deliver.
        prepare: called before each delivery, to put in what has changed since.
    """

    def __init__(self, url: str, queue: DiskQueue, prepare: Callable[[], None]) -> None:
        # Never created here, for the store may be on a disk that is away.
        self._client = StoreClient(url, timeout=TIMEOUT)
        self._queue, self._prepare = queue, prepare
        self._wake, self._closing = threading.Event(), threading.Event()
        self._deadline = 0.0
        # A daemon: a server that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="entracte-store", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Deliver soon, since a line was put in."""
        self._wake.set()

    def close(self, timeout: float) -> bool:
        """Deliver what waits and end the thread; return False if lines are left after `timeout`."""
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout)
        return not self._thread.is_alive() and self._queue.empty

    def _work(self) -> None:
        try:
            self._deliver_until_closed()
        except QueueClosed:  # `close` timed out while this thread waited for the store
            pass
        finally:
            self._client.close()

    def _deliver_until_closed(self) -> None:
        pause = RETRY_SECONDS[0]
        while True:
            closing = self._closing.is_set()
            self._wake.clear()
            try:
                self._prepare()
                if not self._queue.empty:
                    self._client.call(deliver, self._queue)
                pause = RETRY_SECONDS[0]
            except QueueClosed:
                raise
            except Exception as error:  # whatever it is, training continues and the queue is kept
                self._client.log_failure(
                    error,
                    f"what is recorded is queued in {self._queue.path}, and delivered when the "
                    f"store {redact_text(self._client.url)} is back",
                )
                if not closing:
                    self._closing.wait(pause)
                    pause = min(2 * pause, RETRY_SECONDS[1])
                elif time.monotonic() + RETRY_SECONDS[0] < self._deadline:
                    time.sleep(RETRY_SECONDS[0])
                else:
                    return
                continue
            if closing:
                return
            self._wake.wait()
            self._closing.wait(BATCH_SECONDS)
