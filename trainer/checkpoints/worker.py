"""A worker: one task at a time in the background, whose failure is raised later, once."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable

log = logging.getLogger("entracte")


class Worker:
    """Runs one task at a time on a thread of its own.

    A failure is kept and raised by the next `check` or `wait`; if none comes before the interpreter
    ends, it is logged. A task under way then is finished first.

    >>> worker = Worker("example")
    >>> worker.start(lambda: 1 / 0)
    >>> worker.wait()
    Traceback (most recent call last):
    ZeroDivisionError: division by zero
    >>> worker.wait()
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._seconds = 0.0
        self._began: float | None = None
        _workers.add(self)

    def start(self, task: Callable[[], None], note: str = "") -> None:
        """Run a task in the background, after the one under way.

        Args:
            task: called without arguments.
            note: added to its failure: what it was doing.
        """
        self.wait()
        self._began = time.perf_counter()
        # A daemon, since only `_finish` knows the right time to wait for it.
        self._thread = threading.Thread(
            target=self._run, args=(task, note, self._began), name=self._name, daemon=True
        )
        self._thread.start()

    def _run(self, task: Callable[[], None], note: str, began: float) -> None:
        try:
            task()
        except BaseException as error:
            error.add_note(note)
            self._error = error
        finally:
            self._seconds, self._began = self._seconds + time.perf_counter() - began, None

    @property
    def seconds(self) -> float:
        """The time that tasks have taken so far, the one under way included."""
        began = self._began
        return self._seconds + (0.0 if began is None else time.perf_counter() - began)

    def join(self) -> None:
        """Wait for the task under way, and raise nothing."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def check(self) -> None:
        """Raise the failure of a task that has ended."""
        if self._thread is None or not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the task under way; raise its failure."""
        self.join()
        error, self._error = self._error, None
        if error is not None:
            raise error


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


def wait_for_saves() -> None:
    """Wait for all saves that are under way in this process; raise nothing."""
    for worker in list(_workers):
        worker.join()


def _finish() -> None:
    """Let tasks under way end when the interpreter does; log failures that nobody asked for."""
    wait_for_saves()
    for worker in list(_workers):
        if worker._error is not None:
            log.error(f"{worker._name} failed", exc_info=worker._error)


# Called before executors shut down, without which a task may fail noisily; atexit comes too late.
threading._register_atexit(_finish)  # type: ignore[attr-defined]
