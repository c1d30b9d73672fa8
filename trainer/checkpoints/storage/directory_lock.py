"""The lock of a run directory: one process trains in it at a time, and a dead one holds nothing.

The kernel holds the lock, on the file `<run>/lock`: it ends with the process, however that ends,
and a forked child has no part in it. It also ends when its process closes any descriptor of the
file, so only this module may open it.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import logging
import os
import re
import stat
import threading
import time
from pathlib import Path

from trainer.checks.paths import to_absolute_path
from trainer.host.atomic_files import explain_disk_full
from trainer.host.machine import describe_process
from trainer.host.processes import fail_together, is_main_process

log = logging.getLogger("entracte")

PATIENCE = 1.0
"""Seconds to wait for the lock: a process that was just killed may free gigabytes before it, and
one that only looks holds it for an instant."""

_FILE = "lock"

_REFUSED = (errno.EACCES, errno.EAGAIN)
"""Error numbers where another process holds the lock."""

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""Error numbers of a file system without locks."""

_HOLDER = re.compile(r"pid \d+ on [\w.:-]+ since [\d :+-]+")


class DirectoryInUse(RuntimeError):  # noqa: N818 - what is the case, as its message says
    """Another process, or another thread of this one, trains in this run directory."""


@dataclasses.dataclass
class _Lock:
    """A lock that this process holds, however many of its hooks asked for it."""

    key: tuple[int, int] = (0, 0)
    """Device and inode of the file."""
    descriptor: int = -1
    holder: str = ""
    supported: bool = False
    """Whether the file system has locks."""
    threads: list[int | None] = dataclasses.field(default_factory=list)
    """One for each that took the lock: the thread that trains, None of who only records."""


class DirectoryLock:
    """A run directory that this process holds. Call it to release; a second call does nothing.

    Somebody may delete the file, a script that tidies up for example, and a second process then
    locks a new one: call `check` before each write.
    """

    def __init__(self, directory: Path, lock: _Lock, thread: int | None) -> None:
        self._directory, self._lock, self._thread = directory, lock, thread
        self._released = False

    def __call__(self) -> None:
        """Release the directory."""
        with _guard:
            if self._released or _held.get(self._lock.key) is not self._lock:
                return
            self._released = True
            self._lock.threads.remove(self._thread)
            if not self._lock.threads:
                del _held[self._lock.key]
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
        if (found := _identify_file(self._directory)) == self._lock.key:
            return
        what = "removed" if found is None else "replaced by another file"
        holder = find_holder(self._directory, by_others=True)
        who = f"{holder} trains there now" if holder else "another process may train there"
        raise DirectoryInUse(
            f"the lock of this run, {str(self._directory / _FILE)!r}, was {what} while the run had "
            f"it: {who}, so nothing is saved any more; earlier checkpoints are kept. Make sure "
            "that no other process uses this directory, and start the run again: it resumes. "
            "Leave the lock alone while a run is active: a dead process holds nothing"
        )


_held: dict[tuple[int, int], _Lock] = {}
"""By key."""

_guard = threading.Lock()

_warned = False
"""Whether it was logged that a file system has no locks: once per process."""


def lock_directory(directory: str | os.PathLike[str]) -> DirectoryLock:
    """Lock a run directory for this process and this thread, to train in it.

    It can be taken once; others in this process may take it to record (`lock_for_recording`), any
    number of times; it is free again when all have released it, or when the process ends. On
    several processes all must call it, and the main process takes it. If the file system has no
    locks, a warning says so, once, and training continues.

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
    return DirectoryLock(path, _Lock(), None)


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
        if own := _held.get(_identify_file(path) or (0, 0)):
            return None if by_others else own.holder
        try:
            descriptor = _open_file(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            error = _try_lock(descriptor, fcntl.LOCK_SH)
            return _read_holder(descriptor) if error and error.errno in _REFUSED else None
        finally:
            os.close(descriptor)


def _acquire(path: Path, thread: int | None) -> DirectoryLock:
    """Take the lock of a directory, or take part in it if this process has it."""
    lock = _held.get(_identify_file(path) or (0, 0))
    if lock is None:
        descriptor = _open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            supported = _wait_for_lock(path, descriptor)
            holder = describe_process()
            os.ftruncate(descriptor, 0)
            line = f"{holder}\n".encode()
            with explain_disk_full(len(line), path / _FILE):
                os.pwrite(descriptor, line, 0)
            status = os.fstat(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        lock = _Lock((status.st_dev, status.st_ino), descriptor, holder, supported)
        _held[lock.key] = lock
    elif thread is not None and any(lock.threads):
        # The kernel's locks belong to the process: they refuse nothing to its own threads.
        who = "another thread of this process trains there"
        if thread in lock.threads:
            who = "a hook of this very run, or a run that it is within, saves there"
        raise DirectoryInUse(
            f"{path} is in use: {who}, and two would overwrite each other's checkpoints and "
            "records; give each a directory of its own"
        )
    lock.threads.append(thread)
    return DirectoryLock(path, lock, thread)


def _wait_for_lock(path: Path, descriptor: int) -> bool:
    """Lock the file within `PATIENCE`; return whether the file system has locks."""
    global _warned
    deadline = time.monotonic() + PATIENCE
    while (error := _try_lock(descriptor, fcntl.LOCK_EX)) and error.errno in _REFUSED:
        if time.monotonic() > deadline:
            raise DirectoryInUse(
                f"{path} is in use: {_read_holder(descriptor)} trains there, and two would "
                "overwrite each other's checkpoints and records; give this run another directory, "
                "or end that process first"
            )
        time.sleep(0.02)
    if error and not _warned:
        _warned = True
        log.warning(
            f"the file system of {path} knows no locks ({error.strerror}): nothing keeps a "
            "second process from training in it"
        )
    return error is None


def _try_lock(descriptor: int, kind: int) -> OSError | None:
    """Lock a file, or return the error that says why not: it is refused, or not supported."""
    try:
        fcntl.lockf(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (*_REFUSED, *_UNSUPPORTED):
            raise
        return error
    return None


def _open_file(directory: Path, flags: int) -> int:
    """Open the lock file if it is a regular file with one name, and no link."""
    file = directory / _FILE
    try:
        descriptor = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is no file of its own", str(file))
    except OSError as error:
        error.add_note(
            f"{str(file)!r} is the lock of the run, a file that this user can write and no link; "
            "remove what is there, or give the run another directory"
        )
        raise
    return descriptor


def _identify_file(directory: Path) -> tuple[int, int] | None:
    """Return the key of a lock file, the same for every path to it; None if there is no file."""
    try:
        status = (directory / _FILE).lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _read_holder(descriptor: int) -> str:
    """Read which process holds the lock; other text in the file is not repeated to terminals."""
    text = os.pread(descriptor, 500, 0).decode("ascii", "replace").strip()
    return text if _HOLDER.fullmatch(text) else "another process"


def _forget() -> None:
    """Hold nothing in a forked child: the locks belong to its parent."""
    global _guard
    _guard = threading.Lock()
    for lock in _held.values():
        os.close(lock.descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
