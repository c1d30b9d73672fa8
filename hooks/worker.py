"""A worker thread: work done in order, away from training; its failure surfaces, never lost."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any


class Worker:
    """Calls a function on a thread of its own, in order.

    The thread starts with the first item. Where items come faster than they are worked off, `put`
    waits. A failure is raised once, by whichever of `put`, `flush` and `close` comes next; what was
    queued behind it until then is not worked off, what comes after it is.

    Args:
        name: of the thread, and in messages.
        function: called with each item.
        waiting: items that may wait.

    >>> seen = []
    >>> worker = Worker("append", seen.append, waiting=4)
    >>> worker.put(1); worker.put(2); worker.close()
    >>> seen
    [1, 2]
    """

    def __init__(self, name: str, function: Callable[[Any], None], *, waiting: int) -> None:
        self._name, self._function = name, function
        self._items: queue.Queue[Any] = queue.Queue(waiting)
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def put(self, item: Any) -> None:
        """Queue an item."""
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._items.put((item,))

    def flush(self) -> None:
        """Wait until all that was queued is done."""
        self._items.join()
        self._raise()

    def close(self) -> None:
        """Finish what was queued and end the thread."""
        if self._thread is not None:
            self._items.put(None)
            self._thread.join()
            self._thread = None
        self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            self._items.join()
            failure, self._failure = self._failure, None
            raise failure

    def _work(self) -> None:
        while (item := self._items.get()) is not None:
            try:
                if self._failure is None:
                    self._function(item[0])
            except Exception as error:
                error.add_note(f"on the worker thread of {self._name!r}")
                self._failure = error
            finally:
                self._items.task_done()
        self._items.task_done()
