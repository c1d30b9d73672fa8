"""Work that a thread does ahead of its use: while the device computes, and between epochs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from trainer.host.time_spans import span

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class Prefetcher(Generic[Key, Result]):
    """A function that is called one key ahead, in a thread of its own.

    What it raises is raised by the call that asks for that key. The thread ends with this object,
    or with the process, after the call that it is in.

    Args:
        function: of a key alone, so that a result which is there already is as good as a new one.

    >>> ahead = Prefetcher(lambda number: number**2)
    >>> ahead(3, then=4), ahead(4, then=5), ahead(9, then=10)
    (9, 16, 81)
    """

    def __init__(self, function: Callable[[Key], Result]) -> None:
        def read(key: Key) -> Result:
            with span("read"):
                return function(key)

        self._function = read
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="entracte-data")
        self._waiting: tuple[Key, Future[Result]] | None = None

    def __call__(self, key: Key, *, then: Key) -> Result:
        """Give the result for a key, and begin with the one that will be asked for next."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting[0] == key:
            result = waiting[1]
        else:
            result = self._thread.submit(self._function, key)
        self._waiting = then, self._thread.submit(self._function, then)
        return result.result()
