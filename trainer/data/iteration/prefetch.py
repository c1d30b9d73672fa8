"""Prefetching: a thread computes the next result while the device computes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from trainer.host.time_spans import span

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class Prefetcher(Generic[Key, Result]):
    """A function that is called one key ahead, in its own thread.

    An exception of the function is raised by the call for that key. The thread ends with this
    object, or with the process, after its current call.

    Args:
        function: its result depends on the key alone, so a prefetched one is as good as a new one.

    >>> prefetch = Prefetcher(lambda number: number**2)
    >>> prefetch(3, then=4), prefetch(4, then=5), prefetch(9, then=10)
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
        """Return the result for a key, and start computing that of the next key."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting[0] == key:
            result = waiting[1]
        else:
            result = self._thread.submit(self._function, key)
        self._waiting = then, self._thread.submit(self._function, then)
        return result.result()
