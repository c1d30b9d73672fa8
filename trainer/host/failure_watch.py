"""A watch for failures of other processes: without it this one may wait for them for ever."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
from typing import Any

import jax

from trainer.host.exchange import describe_failure

log = logging.getLogger("entracte")

PAUSE = 1.0
"""Seconds between two looks at the failures of others."""

GRACE = 5.0
"""Seconds in which this process may learn of a failure by itself, by an exchange."""

_numbers = itertools.count()
"""Of the watches: the same run has the same number on every process."""


class FailureWatch:
    """Tells the other processes of a run why this one failed, and ends this one if another did.

    A process that fails alone leaves the others in a collective that nothing can interrupt; JAX
    ends them after minutes, without a reason. Reasons are kept by the service of
    `jax.distributed`; where that was not started, and on one process, this does nothing.
    """

    def __init__(self) -> None:
        self._client = _find_client()
        self._folder = f"entracte/failures/{next(_numbers)}/"
        self._left = threading.Event()
        self._thread: threading.Thread | None = None
        if self._client is not None:
            name = "entracte-failures"
            self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
            self._thread.start()

    def report(self, error: BaseException) -> None:
        """Tell the others why this process ends; it no longer ends with them."""
        self.close()
        if self._client is not None:
            reason = describe_failure(error)[:2000]
            try:
                self._client.key_value_set(f"{self._folder}{jax.process_index()}", reason)
            except Exception as failure:
                error.add_note(f"and the other processes could not be told: {failure!r:.200}")

    def close(self) -> None:
        """Stop watching; may be called again."""
        self._left.set()
        if self._thread is not None:
            self._thread.join(PAUSE)

    def _watch(self) -> None:
        while not self._left.wait(PAUSE):
            try:
                found = self._client.key_value_dir_get(self._folder)
            except Exception:  # the service is gone, and JAX ends the process
                log.debug("the failures of other processes can no longer be read", exc_info=True)
                return
            if found and not self._left.wait(GRACE):
                name, reason = found[0]
                log.error(
                    "process %s failed, and this one cannot continue without it: %s",
                    *(name.rpartition("/")[2], reason),
                )
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(1)  # the main thread waits in a collective, where no exception reaches it


def _find_client() -> Any:
    """Return the client of the service that `jax.distributed.initialize` started, or None.

    JAX has no public access to it; Orbax takes it from the same place.
    """
    if jax.process_count() == 1:
        return None
    from jax._src import distributed

    return distributed.global_state.client
