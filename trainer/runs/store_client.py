"""Clients of a store that may be away: they open a connection when it is needed, and reopen it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from trainer.host.redaction import redact_text
from trainer.runs.sql.connection import Unreachable
from trainer.runs.store import Store

log = logging.getLogger("entracte")

Result = TypeVar("Result")

POLL_SECONDS = 1.0
"""Seconds that training waits for an answer."""

STOP_CHECK_SECONDS = 0.1
"""Seconds of a pause between two checks whether to stop, so that a signal ends it."""

MAX_PAUSE_SECONDS = 30.0
"""Seconds between two tries at most."""


class StoreClient:
    """A store that must exist. Its connection is opened by the first call, and after a failure.

    It waits `timeout` seconds for a server, or for a lock.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Store(folder).close()
    ...     client = StoreClient(f"sqlite:///{folder}/store.sqlite")
    ...     client.call(Store.runs)
    ...     client.close()
    []
    """

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        self.url, self._timeout = url, timeout
        self._lock = threading.RLock()
        self._store: Store | None = None
        self._away_since: float | None = None

    @property
    def is_local(self) -> bool:
        """Whether the store is a file, and no server."""
        return self.url.startswith("sqlite:")

    def open(self) -> None:
        """Open the connection; it raises what `Store` does."""
        with self._lock:
            if self._store is None:
                self._store = Store(self.url, create=False, timeout=self._timeout)

    def call(self, do: Callable[..., Result], *arguments: Any, **settings: Any) -> Result:
        """Call `do(store, ...)`.

        Raises:
            Unreachable: the store does not answer, or its file does not exist now.
            Exception: whatever else `Store` or `do` raises.
        """
        with self._lock:
            try:
                self.open()
                result = do(self._store, *arguments, **settings)
            except BaseException as error:
                self.close()
                if isinstance(error, FileNotFoundError):
                    raise Unreachable(str(error)) from error
                raise
        if self._away_since is not None:
            away, self._away_since = time.monotonic() - self._away_since, None
            log.info("the store %s is back after %.0f s", redact_text(self.url), away)
        return result

    def call_with_retry(
        self,
        do: Callable[..., Result],
        *arguments: Any,
        pause: float,
        stop: Callable[[], bool],
        **settings: Any,
    ) -> Result | None:
        """Call `do(store, ...)` until the store answers; return None once `stop` returns True.

        The second try is after `pause` seconds; they double from then on.
        """
        while True:
            try:
                return self.call(do, *arguments, **settings)
            except Unreachable as error:
                self.log_failure(error, "waiting until it is back")
                sleep_unless_stopped(pause, stop)
                pause = min(2 * pause, MAX_PAUSE_SECONDS)
                if stop():
                    return None

    def log_failure(self, error: Exception, consequence: str) -> None:
        """Log that the store is away, once until a call succeeds, which is logged too."""
        if self._away_since is None:
            self._away_since = time.monotonic()
            cause = None if isinstance(error, Unreachable) else error
            log.warning("%s: %s", error, consequence, exc_info=cause)

    def close(self) -> None:
        """Close the connection; a further call opens another."""
        with self._lock:
            store, self._store = self._store, None
            if store is not None:
                store.close()


class StorePoller:
    """A client that waits a second for an answer, whatever the store is doing.

    A server that hangs may keep a connection open without ever answering, so it is called on a
    thread. While an answer is overdue, further calls fail at once. SQLite has time limits of its
    own, and needs no thread.
    """

    def __init__(self, url: str) -> None:
        self._client = StoreClient(url, timeout=POLL_SECONDS)
        self._answer: Future[Any] | None = None

    def call(self, do: Callable[..., Result], *arguments: Any, **settings: Any) -> Result:
        """Call `do(store, ...)`.

        Raises:
            Unreachable: the store is away, does not answer in time, or still owes the answer to an
                earlier call.
            Exception: whatever else `Store` or `do` raises.
        """
        client = self._client
        if self._answer is not None and not self._answer.done():
            raise Unreachable(f"the store {redact_text(client.url)} has not answered yet")
        self._answer = answer = Future[Result]()

        def work() -> None:
            try:
                answer.set_result(client.call(do, *arguments, **settings))
            except BaseException as error:  # also a signal's: it is raised below
                answer.set_exception(error)

        if client.is_local:
            work()
        else:  # a daemon: a server that hangs must not keep the process from ending
            thread = threading.Thread(target=work, name="entracte-poll", daemon=True)
            thread.start()
            thread.join(POLL_SECONDS)
        if not answer.done():
            raise Unreachable(
                f"the store {redact_text(client.url)} gives no answer in {POLL_SECONDS:g} s"
            )
        return answer.result()

    def log_failure(self, error: Exception, consequence: str) -> None:
        """Log that the store is away, once until a call succeeds, which is logged too."""
        self._client.log_failure(error, consequence)

    def close(self) -> None:
        """Close the connection, once the store has answered; a further call opens another."""
        answer, client = self._answer, self._client
        self._answer, self._client = None, StoreClient(client.url, timeout=POLL_SECONDS)
        if answer is not None:
            answer.add_done_callback(lambda _: client.close())


def sleep_unless_stopped(seconds: float, stop: Callable[[], bool]) -> None:
    """Sleep, until `stop` returns True."""
    until = time.monotonic() + seconds
    while not stop() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, STOP_CHECK_SECONDS))
