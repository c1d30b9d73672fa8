"""Retry calls to a store that is away, until it answers or a signal arrives."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from trainer.host.redaction import redact_text
from trainer.runs.connection import Unreachable
from trainer.runs.store_client import StoreClient

log = logging.getLogger("entracte")

Result = TypeVar("Result")

STOP_CHECK_SECONDS = 0.1
"""Seconds of a pause between two checks whether to stop, so that a signal ends it."""

MAX_PAUSE_SECONDS = 30.0
"""Seconds between two tries at most."""


def call_with_retry(
    client: StoreClient,
    do: Callable[..., Result],
    *arguments: Any,
    pause: float,
    stop: Callable[[], bool],
    **settings: Any,
) -> Result | None:
    """Call `do(store, ...)` until the store answers; that it is away is logged once.

    Args:
        client: of the store.
        do: what to call, with arguments and settings.
        pause: seconds until the second try; they double from then on.
        stop: returns True to stop trying.

    Returns:
        The result; None after `stop`.
    """
    away_since: float | None = None
    while True:
        try:
            result = client.call(do, *arguments, **settings)
        except Unreachable as error:
            if away_since is None:
                away_since = time.monotonic()
                log.warning("%s: waiting until it is back", error)
            sleep_unless_stopped(pause, stop)
            pause = min(2 * pause, MAX_PAUSE_SECONDS)
            if stop():
                return None
        else:
            if away_since is not None:
                away = time.monotonic() - away_since
                log.warning("the store %s is back after %.0f s", redact_text(client.url), away)
            return result


def sleep_unless_stopped(seconds: float, stop: Callable[[], bool]) -> None:
    """Sleep, until `stop` returns True."""
    until = time.monotonic() + seconds
    while not stop() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, STOP_CHECK_SECONDS))
