"""A worker that runs one task at a time in the background and raises its failure later, once."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
import weakref
from collections.abc import Callable

from trainer.checkpoints.arrays.two_threads import has_room_for_thread

log = logging.getLogger("entracte")

SLOW_DISK_REMEDY = (
    ": the disk does not answer, or is too slow for a state of this size. Checkpoints before it "
    "stand; where it is only slow, give save_checkpoints a longer time_limit"
)
"""The remedy for a save that takes longer than its limit, for the message."""


@dataclasses.dataclass
class _Task:
    """A task of a thread, and its result."""

    run: Callable[[], None]
    note: str
    began: float
    error: BaseException | None = None
    seconds: float | None = None
    """How long it took, once it has ended."""
    thread: threading.Thread = dataclasses.field(init=False)

    def measure(self) -> float:
        """Return how long it has taken so far."""
        return time.perf_counter() - self.began if self.seconds is None else self.seconds


class SaveWorker:
    """Runs one task at a time on a thread of its own, each within a time limit.

    A failure is kept and raised by the next `check` or `wait`; if none comes before the interpreter
    ends, it is logged. A task in progress is finished first. A task that exceeds its limit has
    failed, and so has a thread that ends without a result; a thread that does not end is abandoned,
    and nothing waits for it again.

    Args:
        name: of the threads.
        time_limit: seconds that a task may take; None: no limit.
        remedy: what to do about a task that took longer, for the message.

    >>> worker = SaveWorker("example")
    >>> worker.start(lambda: 1 / 0)
    >>> worker.wait()
    Traceback (most recent call last):
    ZeroDivisionError: division by zero
    >>> worker.wait()
    """

    def __init__(self, name: str, *, time_limit: float | None = None, remedy: str = "") -> None:
        if time_limit is not None and not time_limit > 0:
            raise ValueError(f"time_limit must be positive seconds, or None; got {time_limit}")
        self._name, self._limit, self._remedy = name, time_limit, remedy
        self._task: _Task | None = None
        self._abandoned: _Task | None = None
        self._error: BaseException | None = None
        self._seconds = 0.0
        _workers.add(self)

    def start(self, task: Callable[[], None], note: str = "") -> None:
        """Run a task in the background, after the one in progress.

        Args:
            task: called without arguments.
            note: added to its exception: what it was doing.

        Raises:
            MemoryError: there is not enough memory for a thread.
            RuntimeError: no thread can start, or an abandoned one still runs.
        """
        self.wait_until_ready()
        new = _Task(task, note, time.perf_counter())
        # A daemon, since only `_finish` knows the right time to wait for it.
        new.thread = threading.Thread(target=_run, args=(new,), name=self._name, daemon=True)
        try:
            if not has_room_for_thread():
                raise MemoryError("there is no memory left for a thread")
            new.thread.start()
        except (MemoryError, RuntimeError) as error:
            _note(error, note)
            raise
        self._task = new

    def wait_until_ready(self) -> None:
        """Wait for the task in progress, raise its failure, or that an abandoned thread runs."""
        self.wait()
        if self._abandoned is not None and self._abandoned.thread.is_alive():
            raise RuntimeError(
                f"{self._name} was abandoned {self._abandoned.note} and still runs: end this "
                "process, and start the run again"
            )
        self._abandoned = None

    def is_abandoned(self) -> bool:
        """Return, to a task, whether its thread was abandoned: it must leave no result."""
        task = self._abandoned
        return task is not None and task.thread is threading.current_thread()

    @property
    def seconds(self) -> float:
        """The time that tasks have taken so far, the one in progress included."""
        task = self._task
        return self._seconds + (0.0 if task is None else task.measure())

    def join(self) -> None:
        """Wait for the task in progress, at most until its limit, and raise nothing."""
        task = self._task
        if task is None:
            return
        task.thread.join(None if self._limit is None else max(self._time_left(task), 0.0))
        if task is not self._task:  # another thread, or a signal handler, waited for it too
            return
        alive, error = task.thread.is_alive(), task.error  # in this order: it may end just now
        self._seconds += task.measure()
        if alive:
            self._abandoned = task
            error = TimeoutError(
                f"{self._name} took longer than its limit of {self._limit:g} seconds{self._remedy}"
            )
        elif task.seconds is None and error is None:
            error = RuntimeError(f"the thread of {self._name} died without a result")
        if error is not None:
            _note(error, task.note)
        self._task, self._error = None, error

    def check(self) -> None:
        """Raise the failure of a task that has ended or exceeded its limit."""
        task = self._task
        if task is None or not task.thread.is_alive() or self._time_left(task) <= 0:
            self.wait()

    def _time_left(self, task: _Task) -> float:
        limit = float("inf") if self._limit is None else self._limit
        return task.began + limit - time.perf_counter()

    def wait(self) -> None:
        """Wait for the task in progress, at most until its limit; raise its failure."""
        self.join()
        error, self._error = self._error, None
        if error is not None:
            raise error


def _run(task: _Task) -> None:
    try:
        task.run()
    except BaseException as error:
        task.error = error
    finally:
        task.seconds = task.measure()


def _note(error: BaseException, note: str) -> None:
    with contextlib.suppress(MemoryError):
        error.add_note(note)


_workers: weakref.WeakSet[SaveWorker] = weakref.WeakSet()


def wait_for_saves() -> None:
    """Wait for all saves in progress in this process, within their limits; raise nothing."""
    for worker in list(_workers):
        worker.join()


def _finish() -> None:
    """Finish tasks in progress when the interpreter ends; log failures that were never raised."""
    wait_for_saves()
    for worker in list(_workers):
        if worker._error is not None:
            log.error(f"{worker._name} failed", exc_info=worker._error)


# Called before executors shut down, which a task may need; atexit comes too late.
threading._register_atexit(_finish)  # type: ignore[attr-defined]
