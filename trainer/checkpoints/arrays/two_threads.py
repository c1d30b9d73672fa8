"""Do work on bytes on two threads: one leaves half of a disk's or a memory's speed unused."""

from __future__ import annotations

import _thread
import contextlib
import mmap
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

_TWO_THREADS = 2**24
"""Bytes from which a second thread pays off: one thread copies that many in about 3 ms."""


def map_in_threads(function: Any, jobs: Sequence[Any], size: int) -> list[Any]:
    """Map over jobs, on two threads where there are enough bytes; numpy and xxhash free the GIL.

    If the second thread cannot start, or dies for lack of memory (in a pool nobody would notice),
    the first one does all jobs.
    """
    results: list[Any] = [_MISSING] * len(jobs)
    left, busy = deque(range(len(jobs))), threading.Lock()

    def take() -> bool:
        try:
            number = left.popleft()
        except IndexError:
            return False
        results[number] = function(jobs[number])
        return True

    def help_out() -> None:
        with contextlib.suppress(Exception):  # the first thread does that job again, and raises it
            more = True
            while more:
                with busy:  # locked before a job is taken: when it is free, no job is in progress
                    more = take()

    if size >= _TWO_THREADS and len(jobs) > 1 and has_room_for_thread():
        with contextlib.suppress(RuntimeError):
            _thread.start_new_thread(help_out, ())
    while take():
        pass
    with busy:
        pass
    return [
        function(job) if result is _MISSING else result
        for job, result in zip(jobs, results, strict=True)
    ]


_MISSING = object()


def has_room_for_thread() -> bool:
    """Return whether there is enough memory for a thread.

    Python waits forever for one that dies while it starts.

    >>> has_room_for_thread()
    True
    """
    try:
        mmap.mmap(-1, _THREAD).close()  # never touched: it takes an address range only
    except OSError:
        return False
    return True


_THREAD = 2**25
"""Bytes for a thread: a stack of 8 MB, and its allocations until it reports that it runs."""
