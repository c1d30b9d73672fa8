"""A worker: one task at a time in the background, whose failure is raised later, once."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import mmap
import threading
import time
import weakref
from collections.abc import Callable

log = logging.getLogger("entracte")

SLOW = (
    ": the disk does not answer, or is too slow for a state of this size. Commits before it stand; "
    "where it is only slow, give save_checkpoints a longer time_limit"
)
"""What to do about a save that takes longer than its limit."""


@dataclasses.dataclass
class _Task:
    """What a thread does, and what became of it."""

    run: Callable[[], None]
    note: str
    began: float
    error: BaseException | None = None
    seconds: float | None = None
    """That it took, once it has ended."""
    thread: threading.Thread | None = None


class Worker:
    """Runs one task at a time on a thread of its own, each within a time limit.

    A failure is kept and raised by the next `check` or `wait`; if none comes before the interpreter
    ends, it is logged. A task under way then is finished first. One that passes its limit is a
    failure, too, and so is a thread that ends without a result; a thread that does not end is left
    behind, and nothing waits for it again.

    Args:
        name: of the threads.
        time_limit: seconds that a task may take; None for as long as it likes.
        remedy: what to do about a task that took longer, for the message.

    >>> worker = Worker("example")
    >>> worker.start(lambda: 1 / 0)
    >>> worker.wait()
    Traceback (most recent call last):
    ZeroDivisionError: division by zero
    >>> worker.wait()
    """

    def __init__(self, name: str, *, time_limit: float | None = None, remedy: str = "") -> None:
        self._name, self._limit, self._remedy = name, time_limit, remedy
        self._task: _Task | None = None
        self._stuck: _Task | None = None
        self._error: BaseException | None = None
        self._seconds = 0.0
        _workers.add(self)

    def start(self, task: Callable[[], None], note: str = "") -> None:
        """Run a task in the background, after the one under way.

        Args:
            task: called without arguments.
            note: added to its failure: what it was doing.

        Raises:
            MemoryError: there is too little for a thread.
            RuntimeError: there can be no thread, or one that was left behind still runs.
        """
        self.ready()
        new = _Task(task, note, time.perf_counter())
        # A daemon, since only `_finish` knows the right time to wait for it.
        new.thread = threading.Thread(target=_run, args=(new,), name=self._name, daemon=True)
        try:
            if not room_for_thread():
                raise MemoryError("there is no memory left for a thread")
            new.thread.start()
        except (MemoryError, RuntimeError) as error:
            _note(error, note)
            raise
        self._task = new

    def ready(self) -> None:
        """Wait for the task under way, raise its failure, and see that another one may start.

        Raises:
            RuntimeError: a thread that was left behind still runs.
        """
        self.wait()
        if self._stuck is not None and self._stuck.thread is not None:
            if self._stuck.thread.is_alive():
                raise RuntimeError(
                    f"{self._name} was left behind {self._stuck.note} and still runs: end this "
                    "process, and start the run again"
                )
            self._stuck = None

    def is_abandoned(self) -> bool:
        """Say, to a task, whether its thread was left behind: it must leave no result."""
        stuck = self._stuck
        return stuck is not None and stuck.thread is threading.current_thread()

    @property
    def seconds(self) -> float:
        """The time that tasks have taken so far, the one under way included."""
        task = self._task
        return self._seconds + (0.0 if task is None else _taken(task))

    def join(self) -> None:
        """Wait for the task under way, at most until its limit, and raise nothing."""
        task = self._task
        if task is None or task.thread is None:
            return
        left = None if self._limit is None else task.began + self._limit - time.perf_counter()
        task.thread.join(left if left is None else max(left, 0.0))
        if task is not self._task:  # another thread, or a signal's handler, waited for it, too
            return
        alive = task.thread.is_alive()
        self._seconds += _taken(task)
        if alive:
            self._stuck = task
            task.error = TimeoutError(
                f"{self._name} took longer than its limit of {self._limit:g} seconds{self._remedy}"
            )
            _note(task.error, task.note)
        elif task.seconds is None and task.error is None:
            task.error = RuntimeError(f"the thread of {self._name} died without a word")
            _note(task.error, task.note)
        self._task, self._error = None, task.error

    def check(self) -> None:
        """Raise the failure of a task that has ended, or passed its limit."""
        task = self._task
        if task is None or task.thread is None or not task.thread.is_alive() or self._late(task):
            self.wait()

    def _late(self, task: _Task) -> bool:
        return self._limit is not None and time.perf_counter() - task.began >= self._limit

    def wait(self) -> None:
        """Wait for the task under way, at most until its limit; raise its failure."""
        self.join()
        error, self._error = self._error, None
        if error is not None:
            raise error


def room_for_thread() -> bool:
    """Say whether there is memory for a thread.

    Python waits for good for one that dies while it starts.

    >>> room_for_thread()
    True
    """
    try:
        mmap.mmap(-1, _THREAD).close()  # never touched, so that it takes nothing but the address
    except OSError:
        return False
    return True


_THREAD = 2**25
"""Bytes for a thread: a stack of 8 MB, and what it allocates until it tells that it runs."""


def _run(task: _Task) -> None:
    try:
        task.run()
    except BaseException as error:
        task.error = error  # before anything that could fail for want of memory
        _note(error, task.note)
    finally:
        task.seconds = time.perf_counter() - task.began


def _taken(task: _Task) -> float:
    return time.perf_counter() - task.began if task.seconds is None else task.seconds


def _note(error: BaseException, note: str) -> None:
    with contextlib.suppress(MemoryError):
        error.add_note(note)


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


def wait_for_saves() -> None:
    """Wait for all saves that are under way in this process, within their limits; raise nothing."""
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
