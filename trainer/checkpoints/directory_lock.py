"""The lock of a run directory: one process trains in it at a time, and a dead one holds nothing.

The kernel holds the lock, on the file `<run>/lock`: it ends with the process, however that ends,
and a forked child has no part in it. It also ends when its process closes any descriptor of the
file, so only this module may open it.
"""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import os
import socket
import threading
import time
from pathlib import Path

from trainer.checkpoints.lock_file import (
    FILE,
    REFUSED,
    UNSUPPORTED,
    identify_lock_file,
    open_lock_file,
    read_holder,
    warn_unsupported,
)
from trainer.checks.paths import to_absolute_path
from trainer.host.atomic_files import explain_disk_full
from trainer.host.processes import fail_together, is_main_process

PATIENCE = 1.0
"""Seconds to wait for the lock: a process that was just killed may free gigabytes before it, and
one that only looks holds it for an instant."""


class DirectoryInUse(RuntimeError):  # noqa: N818 - what is the case, as its message says
    """Another process, or another thread of this one, trains in this run directory."""


@dataclasses.dataclass
class _Lock:
    """A lock that this process holds, however many of its hooks asked for it."""

    descriptor: int
    holder: str
    supported: bool
    """Whether the file system has locks."""
    count: int = 0
    training_threads: list[int] = dataclasses.field(default_factory=list)
    """The thread that trains there, once for each of its hooks that took the lock to train."""


class DirectoryLock:
    """A run directory that this process holds. Call it to release; a second call does nothing.

    Somebody may delete the file, a script that tidies up for example, and a second process then
    locks a new one: call `check` before each write.
    """

    def __init__(self, path: Path, key: tuple[int, int], lock: _Lock, thread: int | None) -> None:
        self._directory, self._key, self._lock, self._thread = path, key, lock, thread
        self._released = False

    def __call__(self) -> None:
        """Release the directory."""
        with _guard:
            if self._released or _held.get(self._key) is not self._lock:
                return
            self._released = True
            self._lock.count -= 1
            if self._thread is not None:
                self._lock.training_threads.remove(self._thread)
            if not self._lock.count:
                del _held[self._key]
                os.ftruncate(self._lock.descriptor, 0)  # an empty file is no sign of a run
                os.close(self._lock.descriptor)

    def by_this_thread(self) -> bool:
        """Return whether the calling thread is the one that took it."""
        return self._thread in (None, threading.get_ident())

    def check(self) -> None:
        """Check, with one `lstat`, that the held lock is the one that others find at its path.

        Raises:
            DirectoryInUse: it was removed or replaced, so that another process may train there.
        """
        if not self._lock.supported:
            return
        if (found := identify_lock_file(self._directory)) == self._key:
            return
        what = "removed" if found is None else "replaced by another file"
        holder = find_holder(self._directory, by_others=True)
        who = f"{holder} trains there now" if holder else "another process may train there"
        raise DirectoryInUse(
            f"the lock of this run, {str(self._directory / FILE)!r}, was {what} while the run had "
            f"it: {who}, so nothing is saved any more; earlier checkpoints are kept. Make sure "
            "that no other process uses this directory, and start the run again: it resumes. "
            "Leave the lock alone while a run is active: a dead process holds nothing"
        )


_held: dict[tuple[int, int], _Lock] = {}
"""By `identify_lock_file`."""

_guard = threading.Lock()


def lock_directory(directory: str | os.PathLike[str]) -> DirectoryLock:
    """Lock a run directory for this process and this thread, to train in it.

    It can be taken once; others in this process may take it to record (`lock_for_recording`), any
    number of times; it is free again when all have released it, or when the process ends. On
    several processes all must call it, and the main process takes it. If the file system has no
    locks, a warning says so, once, and training continues.

    Args:
        directory: of the run.

    Returns:
        The held lock: call it to release, and its `check` before each save.

    Raises:
        DirectoryInUse: another process, or another hook or thread of this one, trains in it.
        OSError: the file cannot be written.
        RuntimeError: one of them was raised on the main process, and this is another one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as run:
    ...     release = lock_directory(run)
    ...     print(find_holder(run))
    ...     release()
    ...     print(find_holder(run))
    pid ... on ... since ...
    None
    """
    path = to_absolute_path(directory, "lock")
    with fail_together(f"locking {path}"):
        if is_main_process():
            with _guard:
                return _acquire(path, threading.get_ident())
    return DirectoryLock(path, (0, 0), _Lock(-1, "", supported=False), None)


def lock_for_recording(directory: str | os.PathLike[str]) -> DirectoryLock:
    """Lock a run directory to record in it, for one process that asks no other.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as run:
    ...     lock_for_recording(run)()
    """
    with _guard:
        return _acquire(to_absolute_path(directory, "lock"), None)


def find_holder(directory: str | os.PathLike[str], *, by_others: bool = False) -> str | None:
    """Return which process trains in a run directory: `pid 123 on host since ...`.

    Args:
        directory: of the run, which may be absent; nothing in it is changed.
        by_others: leave this process out.

    Returns:
        None if no process does, or the file system has no locks.

    Raises:
        OSError: the lock is no regular file with one name, or cannot be read.
    """
    path = to_absolute_path(directory, "lock")
    with _guard:
        if own := _held.get(identify_lock_file(path) or (0, 0)):
            return None if by_others else own.holder
        try:
            descriptor = open_lock_file(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return None
            if error.errno not in REFUSED:
                raise
            return read_holder(descriptor)
        finally:
            os.close(descriptor)
    return None


def _acquire(path: Path, thread: int | None) -> DirectoryLock:
    """Take the lock, or count once more if this process has it.

    Args:
        path: of the directory.
        thread: that will train in it; None only records.
    """
    key = identify_lock_file(path)
    lock = None if key is None else _held.get(key)
    if key is None or lock is None:
        descriptor = open_lock_file(path, os.O_RDWR | os.O_CREAT)
        try:
            supported = _wait_for_lock(path, descriptor)
            now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
            holder = f"pid {os.getpid()} on {socket.gethostname()} since {now}"
            lock = _Lock(descriptor, holder, supported)
            os.ftruncate(descriptor, 0)
            line = f"{holder}\n".encode()
            with explain_disk_full(len(line), path / FILE):
                os.pwrite(descriptor, line, 0)
            status = os.fstat(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        key = status.st_dev, status.st_ino
        _held[key] = lock
    elif thread is not None and lock.training_threads:
        # The kernel's locks belong to the process: they refuse nothing to its own threads.
        who = "another thread of this process trains there"
        if thread in lock.training_threads:
            who = "a hook of this very run, or a run that it is within, saves there"
        raise DirectoryInUse(
            f"{path} is in use: {who}, and two would overwrite each other's checkpoints and "
            "records; give each a directory of its own"
        )
    lock.count += 1
    lock.training_threads += [] if thread is None else [thread]
    return DirectoryLock(path, key, lock, thread)


def _wait_for_lock(path: Path, descriptor: int) -> bool:
    """Lock the file within `PATIENCE`; return whether the file system has locks.

    Raises:
        DirectoryInUse: another process has it.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in UNSUPPORTED:
                warn_unsupported(path, error)
                return False
            if error.errno not in REFUSED:
                raise
        if time.monotonic() > deadline:
            raise DirectoryInUse(
                f"{path} is in use: {read_holder(descriptor)} trains there, and two would "
                "overwrite each other's checkpoints and records; give this run another directory, "
                "or end that process first"
            )
        time.sleep(0.02)


def _forget() -> None:
    """Hold nothing in a forked child: the locks belong to its parent."""
    global _guard
    _guard = threading.Lock()
    for lock in _held.values():
        os.close(lock.descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
