"""`Dispatch`: a computation that is sent to the device in parts, some of them before their turn."""

from __future__ import annotations

from collections.abc import Generator
from typing import Generic, TypeVar

from trainer.host.time_spans import StepCounter, swap_step_counters

T = TypeVar("T")

Dispatched = Generator[None, None, T]
"""Sends computations to the device, and returns a result that is still being computed; it yields
before whatever has to be in its turn."""


class Dispatch(Generic[T]):
    """A computation that begins before its turn, and is finished or discarded in its turn.

    >>> def both():
    ...     print("sent")
    ...     yield
    ...     print("read")
    ...     return 5
    >>> one = Dispatch(both())
    >>> one.begin()
    sent
    >>> one.finish()
    read
    5
    """

    def __init__(self, parts: Dispatched[T]) -> None:
        self._parts = parts
        self._results: list[T] = []
        self._errors: list[Exception] = []
        self._counters: tuple[StepCounter, ...] = ()

    def begin(self) -> None:
        """Do what may be done before its turn; an error, and the counts of steps, are kept."""
        others = swap_step_counters(())
        try:
            self._advance()
        except Exception as error:
            self._errors.append(error)
        finally:
            self._counters = swap_step_counters(others)

    def finish(self) -> T:
        """Do the rest, and return the result.

        Raises:
            Exception: what it raised, also before its turn.
        """
        if self._counters:
            swap_step_counters(self._counters)  # progress is shown in its turn
        if self._errors:
            raise self._errors.pop()  # its frames hold this object, which must not hold it
        while not self._results:
            self._advance()
        return self._results[0]

    def _advance(self) -> None:
        try:
            next(self._parts)
        except StopIteration as ended:
            self._results = [ended.value]  # not the exception: its frames hold what was computed

    def discard(self) -> None:
        """End it without its result; what was sent to the device is computed all the same."""
        self._parts.close()
        self._results, self._errors = [], []
