"""Signals: SIGTERM and SIGINT end a run after the running epoch's commit, a second one at once."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

log = logging.getLogger("entracte")


class Received:
    """Which signal asked the run to end, if any."""

    number: int | None = None

    def end_process(self) -> None:
        """End the process in the signal's usual way, if there was one.

        Raises:
            SystemExit: with status 143, on SIGTERM.
            KeyboardInterrupt: on SIGINT.
        """
        if self.number == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt


@contextlib.contextmanager
def listening() -> Iterator[Received]:
    """Note SIGTERM and SIGINT instead of ending; a second one ends at once.

    Handlers can be installed in the main thread only; elsewhere it says so and goes on.
    """
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        log.info("not in the main thread: SIGTERM and SIGINT are left as they are")
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        if received.number is not None:
            received.number = number
            received.end_process()
        received.number = number
        log.warning("%s: ending after this epoch", signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
