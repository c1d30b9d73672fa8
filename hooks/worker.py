"""A worker thread: work done in order, away from training; its failure surfaces, never lost."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any


class BackgroundWorker:
    """Calls a function on a thread of its own, in order.

    The thread starts with the first item. Where items come faster than they are worked off, `put`
    waits. A failure is raised once, by whichever of `check`, `put`, `flush` and `close` comes next;
    what was queued behind it until then is not worked off, what comes after it is. So is an item
    that takes longer than the limit: its thread, which nobody can end, is left behind, and does not
    keep the process from ending.

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
        self._waiting, self._limit = max_queued, time_limit
        self._line: _WorkerThread | None = None

    def check(self) -> None:
        """Raise what failed, or TimeoutError if an item takes too long; do not wait."""
        line = self._line
        if line is None:
            return
        if line.failure is not None:
            self._wait(line)
            failure, line.failure = line.failure, None
            raise failure
        self._raise_if_late(line)

    def put(self, item: Any) -> None:
        """Queue an item."""
        self.check()
        if self._line is None:
            self._line = _WorkerThread(self._name, self._function, self._waiting)
        self._enqueue(self._line, (item,))

    def flush(self) -> None:
        """Wait until all that was queued is done."""
        if self._line is not None:
            self._wait(self._line)
            self.check()

    def close(self) -> None:
        """Finish what was queued and end the thread."""
        line = self._line
        if line is None:
            return
        try:
            self.flush()
        finally:
            self._line = None
            if line.items.unfinished_tasks:  # interrupted, or late
                line.left_behind = True
            else:
                line.items.put(None)
                line.thread.join()

    def _enqueue(self, line: _WorkerThread, item: Any) -> None:
        while True:
            try:
                return line.items.put(item, timeout=self._left(line))
            except queue.Full:
                self._raise_if_late(line)

    def _wait(self, line: _WorkerThread) -> None:
        with line.items.all_tasks_done:
            while line.items.unfinished_tasks:
                line.items.all_tasks_done.wait(self._left(line))
                self._raise_if_late(line)

    def _left(self, line: _WorkerThread) -> float:
        """Give the seconds until the item under way is late."""
        began = line.began
        return self._limit if began is None else max(began + self._limit - time.monotonic(), 0.01)

    def _raise_if_late(self, line: _WorkerThread) -> None:
        began = line.began
        if began is not None and time.monotonic() - began > self._limit:
            self._line, line.left_behind = None, True
            raise TimeoutError(
                f"{self._name!r} took longer than its limit of {self._limit:g} seconds on its "
                "worker thread, which is left behind; what it was given since is lost"
            )


class _WorkerThread:
    """A thread and the queue that it works off, until it is left behind."""

    def __init__(self, name: str, function: Callable[[Any], None], waiting: int) -> None:
        self.items: queue.Queue[Any] = queue.Queue(waiting)
        self.failure: BaseException | None = None
        self.began: float | None = None
        self.left_behind = False
        # A daemon: one that hangs must not keep the process from ending.
        self.thread = threading.Thread(
            target=self._work, args=(name, function), name=name, daemon=True
        )
        self.thread.start()

    def _work(self, name: str, function: Callable[[Any], None]) -> None:
        while not self.left_behind and (item := self.items.get()) is not None:
            self.began = time.monotonic()
            try:
                if self.failure is None:
                    function(item[0])
            except BaseException as error:  # whatever it is, the thread goes on
                error.add_note(f"on the worker thread of {name!r}")
                self.failure = error
            finally:
                self.began = None
                self.items.task_done()
