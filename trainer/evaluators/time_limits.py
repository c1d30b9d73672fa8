"""Time limits: stop an evaluation that hangs."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def limit_time(seconds: float | None) -> Iterator[None]:
    """Stop a block, in the main thread, that takes longer than so many seconds; None: no limit.

    A wait in Python can be stopped: a lock, a socket, a sleep, a loop. Foreign code that does not
    check for signals, such as a computation of JAX, continues.

    Raises:
        TimeoutError: within the block, after that time.

    >>> import time
    >>> with limit_time(0.01):
    ...     time.sleep(60)
    Traceback (most recent call last):
    TimeoutError: it took longer than its limit of 0.01 seconds
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it took longer than its limit of {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, late)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
