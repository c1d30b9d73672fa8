"""Clients of a store that may be away: they open a connection when it is needed, and reopen it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from trainer.host.redaction import redact_text
from trainer.runs.connection import Unreachable
from trainer.runs.store import Store

Result = TypeVar("Result")

POLL_SECONDS = 1.0
"""Seconds that training waits for an answer."""


class StoreClient:
    """A store that must exist. Its connection is opened by the first call, and after a failure.

    Args:
        url: of the store.
        timeout: seconds to wait for a server, or for a lock.

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

    def open(self) -> None:
        """Open the connection.

        Raises:
            FileNotFoundError, Unreachable, ValueError: as `Store`.
        """
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
                return do(self._store, *arguments, **settings)
            except BaseException as error:
                self.close()
                if isinstance(error, FileNotFoundError):
                    raise Unreachable(str(error)) from error
                raise

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

    Args:
        url: of the store.
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

        if client.url.startswith("sqlite:"):
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

    def close(self) -> None:
        """Close the connection, once the store has answered; a further call opens another."""
        answer, client = self._answer, self._client
        self._answer, self._client = None, StoreClient(client.url, timeout=POLL_SECONDS)
        if answer is not None:
            answer.add_done_callback(lambda _: client.close())
