"""A worker thread: it does work in order beside training, and loses no failure."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PAUSE = 0.01
"""Seconds for which a thread that has nothing left lets items gather. To wake it for each takes the
training thread 20 us, and it would then compete for the interpreter just as the next epoch is to be
dispatched; without a pause an event with two writers took 220 us longer."""


class BackgroundWorker:
    """Calls a function with one item after the other, on its own thread.

    The thread starts with the first item. An item that nobody waits for is processed some
    hundredths of a second later. If the queue is full, `put` waits. A failure is raised once, by
    the next call of `check`, `put`, `flush` or `close`; items that were queued until then are
    dropped. If an item exceeds the time limit, TimeoutError is raised in the same way, and the
    thread, which cannot be ended, is left behind; it does not keep the process from ending.

    Args:
        name: of the thread, and in messages.
        function: called with each item.
        max_queued: items that may wait.
        time_limit: seconds that one item may take.

    >>> seen = []
    >>> worker = BackgroundWorker("append", seen.append, max_queued=4, time_limit=60)
    >>> worker.put(1); worker.put(2); worker.close()
    >>> seen
    [1, 2]
    """

    def __init__(
        self, name: str, function: Callable[[Any], None], *, max_queued: int, time_limit: float
    ) -> None:
        self._name, self._function = name, function
        self._max_queued, self._limit = max_queued, time_limit
        self._thread: _WorkerThread | None = None

    def check(self) -> None:
        """Raise a failure, or TimeoutError if an item takes too long; do not wait."""
        thread = self._thread
        if thread is None:
            return
        if thread.failure is not None:
            self._wait(thread)
            failure, thread.failure = thread.failure, None
            raise failure
        self._raise_if_late(thread)

    def put(self, item: Any) -> None:
        """Queue an item."""
        self.check()
        if self._thread is None:
            self._thread = _WorkerThread(self._name, self._function, self._max_queued)
        thread = self._thread
        try:
            return thread.items.put_nowait((item,))
        except queue.Full:
            pass
        with thread.hurrying():
            while True:
                try:
                    return thread.items.put((item,), timeout=self._left(thread))
                except queue.Full:
                    self._raise_if_late(thread)

    def flush(self) -> None:
        """Wait until all queued items are processed."""
        if self._thread is not None:
            self._wait(self._thread)
            self.check()

    def close(self) -> None:
        """Process all queued items and end the thread."""
        thread = self._thread
        if thread is None:
            return
        try:
            self.flush()
        finally:
            self._thread = None
            if thread.items.unfinished_tasks:  # interrupted, or late
                thread.left_behind = True
            else:
                with thread.hurrying():
                    thread.items.put(None)
                    thread.thread.join()

    def _wait(self, thread: _WorkerThread) -> None:
        with thread.hurrying(), thread.items.all_tasks_done:
            while thread.items.unfinished_tasks:
                thread.items.all_tasks_done.wait(self._left(thread))
                self._raise_if_late(thread)

    def _left(self, thread: _WorkerThread) -> float:
        """Return the seconds until the current item is late."""
        began = thread.began
        return self._limit if began is None else max(began + self._limit - time.monotonic(), 0.01)

    def _raise_if_late(self, thread: _WorkerThread) -> None:
        began = thread.began
        if began is not None and time.monotonic() - began > self._limit:
            self._thread, thread.left_behind = None, True
            raise TimeoutError(
                f"{self._name!r} took longer than its limit of {self._limit:g} seconds on its "
                "worker thread, which is left behind; items queued since are lost"
            )


class _WorkerThread:
    """A thread and its queue, which it processes until it is left behind."""

    def __init__(self, name: str, function: Callable[[Any], None], max_queued: int) -> None:
        self.items: queue.Queue[Any] = queue.Queue(max_queued)
        self.failure: BaseException | None = None
        self.began: float | None = None
        self.left_behind = False
        self._hurry = threading.Event()
        # A daemon: a thread that hangs must not keep the process from ending.
        self.thread = threading.Thread(
            target=self._work, args=(name, function), name=name, daemon=True
        )
        self.thread.start()

    @contextlib.contextmanager
    def hurrying(self) -> Iterator[None]:
        """Let it pause no more, since somebody waits for it."""
        self._hurry.set()
        try:
            yield
        finally:
            self._hurry.clear()

    def _get(self) -> Any:
        """Wait for the next item; None ends the thread."""
        if self.items.empty():
            self._hurry.wait(PAUSE)
        try:
            return self.items.get_nowait()
        except queue.Empty:
            item = self.items.get()
            self._hurry.wait(PAUSE)
            return item

    def _work(self, name: str, function: Callable[[Any], None]) -> None:
        while not self.left_behind and (item := self._get()) is not None:
            self.began = time.monotonic()
            try:
                if self.failure is None:
                    function(item[0])
            except BaseException as error:  # whatever it is, the thread continues
                error.add_note(f"on the worker thread of {name!r}")
                self.failure = error
            finally:
                self.began = None
                self.items.task_done()
