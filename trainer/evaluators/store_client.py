"""A link to a store that may be away for a while: opened anew when it did not answer."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from trainer.host.redaction import redact_text
from trainer.runs.connections import Unreachable, resolve_store_url
from trainer.runs.store import Store

log = logging.getLogger("entracte")

Given = TypeVar("Given")

SLICE = 0.1
"""Seconds of a pause after which it is asked whether to go on waiting: a signal ends it."""

LONGEST = 30.0
"""Seconds until a store that stays away is tried again, at most."""


class StoreClient:
    """A store, for as long as a worker lives. Threads have one each.

    Args:
        store: directory of runs, file or URL, see `Store`.

    Raises:
        FileNotFoundError, Unreachable, ValueError: as `Store`.
    """

    def __init__(self, store: str | os.PathLike[str]) -> None:
        self.url = resolve_store_url(store)
        self._lock = threading.Lock()
        self._store: Store | None = Store(self.url, create=False)

    def call(self, do: Callable[..., Given], *arguments: Any, **settings: Any) -> Given:
        """Call `do(store, ...)`.

        Raises:
            Unreachable: the store does not answer now; the next call opens it anew.
        """
        with self._lock:
            try:
                if self._store is None:
                    self._store = Store(self.url, create=False)
                return do(self._store, *arguments, **settings)
            except FileNotFoundError as error:  # it was there when the link was made
                raise Unreachable(str(error)) from error
            except Unreachable:
                self._close()
                raise

    def call_with_retry(
        self,
        do: Callable[..., Given],
        *arguments: Any,
        pause: float,
        stop: Callable[[], bool],
        **settings: Any,
    ) -> Given | None:
        """Call `do(store, ...)`, again and again while the store is away, which is told once.

        Args:
            do: what to call, with arguments and settings.
            pause: seconds until it is tried again, at first.
            stop: says that it shall be given up.

        Returns:
            What it gave; None where it was given up.
        """
        away_since: float | None = None
        while True:
            try:
                answer = self.call(do, *arguments, **settings)
            except Unreachable as error:
                if away_since is None:
                    away_since = time.monotonic()
                    log.warning("%s: waiting until it is back", error)
                sleep_unless_stopped(pause, stop)
                pause = min(2 * pause, LONGEST)
                if stop():
                    return None
            else:
                if away_since is not None:
                    away = time.monotonic() - away_since
                    log.warning("the store %s is back after %.0f s", redact_text(self.url), away)
                return answer

    def close(self) -> None:
        """End the connection."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None


def sleep_unless_stopped(seconds: float, stop: Callable[[], bool]) -> None:
    """Wait, until `stop` says that there is no reason to any more."""
    until = time.monotonic() + seconds
    while not stop() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, SLICE))
