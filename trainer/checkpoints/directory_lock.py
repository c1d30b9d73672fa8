"""The lock of a run's directory: one process trains in it at a time, and a dead one holds nothing.

The lock is the kernel's, on the file `<run>/lock`: it ends with the process, however that ends, and
a forked child has no part in it. It also ends when its process closes any descriptor of the file,
so that nothing but this module may open it. What stands in the file is for people to read.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import fcntl
import logging
import os
import re
import socket
import stat
import threading
import time
from pathlib import Path

from trainer.checks.paths import to_absolute_path
from trainer.host.atomic_files import explain_disk_full
from trainer.host.processes import from_main_process, is_main_process

log = logging.getLogger("entracte")

FILE = "lock"
"""What the file is called in the run's directory."""

PATIENCE = 1.0
"""Seconds to try for: one that was just killed may have gigabytes to give back before its lock, and
one that only asks has it for an instant."""

_SAID = r"pid \d+ on [\w.:-]+ since [\d :+-]+"

_REFUSED = (errno.EACCES, errno.EAGAIN)
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""What a file system answers that knows no locks."""


class DirectoryInUse(RuntimeError):  # noqa: N818 - what is the case, as its message says
    """Another process, or another thread of this one, trains in this run's directory."""


@dataclasses.dataclass
class _Lock:
    """What this process holds, however many of its hooks asked for it."""

    descriptor: int
    holder: str
    known: bool
    """Whether the file system knows locks."""
    count: int = 0
    training: list[int] = dataclasses.field(default_factory=list)
    """The thread that trains there, once for each of its hooks that took it to train."""


class DirectoryLock:
    """A run's directory that this process has. Called, it lets go; called again, it does nothing.

    The file may be deleted, by a script that tidies up say, and a second process then takes another
    one: whoever writes asks `check` before.
    """

    def __init__(self, path: Path, key: tuple[int, int], lock: _Lock, thread: int | None) -> None:
        self._path, self._key, self._lock, self._thread = path, key, lock, thread
        self._let_go = False

    def __call__(self) -> None:
        """Let go of the directory."""
        with _guard:
            if self._let_go or _held.get(self._key) is not self._lock:
                return
            self._let_go = True
            self._lock.count -= 1
            if self._thread is not None:
                self._lock.training.remove(self._thread)
            if not self._lock.count:
                del _held[self._key]
                os.ftruncate(self._lock.descriptor, 0)  # an empty file is no sign of a run
                os.close(self._lock.descriptor)

    def by_this_thread(self) -> bool:
        """Say whether the thread that asks is the one that took it."""
        return self._thread in (None, threading.get_ident())

    def check(self) -> None:
        """See that the lock which is held is the one that others find at its path: one look.

        Raises:
            InUse: it was removed or replaced, so that another process may train there.
        """
        if not self._lock.known or (there := _key(self._path)) == self._key:
            return
        what = "removed" if there is None else "replaced by another file"
        holder = find_holder(self._path, by_others=True)
        may = f"{holder} trains there now" if holder else "another process may train there"
        raise DirectoryInUse(
            f"the lock of this run, {str(self._path / FILE)!r}, was {what} while the run had it: "
            f"{may}, so nothing is saved any more; the checkpoints before stand. See that no other "
            "process is at work in this directory, and start the run again: it resumes. Leave the "
            "lock alone while a run goes on: a dead process holds nothing"
        )


_held: dict[tuple[int, int], _Lock] = {}
"""By device and inode, which are the same whatever path leads to the file."""

_guard = threading.Lock()


def lock_directory(directory: str | os.PathLike[str]) -> DirectoryLock:
    """Take a run's directory for this process and this thread, to train in it.

    It is taken once; others of this process may take it to record what it does
    (`lock_for_recording`), any number of times; it is free again when all have let go, or when the
    process ends. On several processes all must call it, and the lead takes it. Where the file
    system knows no locks, a warning says so, once, and training goes on.

    Args:
        directory: of the run.

    Returns:
        What is held: call it to let go, and `check_held_everywhere` it before each save.

    Raises:
        InUse: another process, or another hook or thread of this one, trains in it.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as run:
    ...     release = lock_directory(run)
    ...     print(find_holder(run))
    ...     release()
    ...     print(find_holder(run))
    pid ... on ... since ...
    None
    """
    path, refusal, taken = to_absolute_path(directory, "lock"), None, None
    if is_main_process():
        try:
            with _guard:
                taken = _acquire(path, threading.get_ident())
        except (DirectoryInUse, OSError) as error:
            refusal = error
    if from_main_process({"refused": refusal is not None})[
        "refused"
    ]:  # or the others wait for the lead
        raise refusal or DirectoryInUse(f"the lead could not take {path}: its own error says why")
    return taken or _elsewhere(path)


def lock_for_recording(directory: str | os.PathLike[str]) -> DirectoryLock:
    """Take a run's directory to record in it, for one process that asks no other.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as run:
    ...     lock_for_recording(run)()
    """
    with _guard:
        return _acquire(to_absolute_path(directory, "lock"), None)


def check_held_everywhere(taken: DirectoryLock) -> None:
    """See that what `lock_directory` took is still held, on all processes alike.

    Raises:
        InUse: the lock was removed or replaced.
    """
    refusal = None
    try:
        taken.check()
    except (DirectoryInUse, OSError) as error:
        refusal = error
    if from_main_process({"lost": refusal is not None})["lost"]:
        raise refusal or DirectoryInUse(
            "the lead no longer holds the run's lock: its own error says why"
        )


def find_holder(directory: str | os.PathLike[str], *, by_others: bool = False) -> str | None:
    """Say which process trains in a run's directory: `pid 123 on host since ...`.

    Args:
        directory: of the run, which need not be there; nothing in it is changed.
        by_others: leave this process out.

    Returns:
        None where none does, or the file system knows no locks.

    Raises:
        OSError: the file is no file of its own, or cannot be read.
    """
    path = to_absolute_path(directory, "lock")
    with _guard:
        if own := _held.get(_key(path) or (0, 0)):
            return None if by_others else own.holder
        try:
            descriptor = _opened(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNKNOWN:
                return None
            if error.errno not in _REFUSED:
                raise
            return _holder(descriptor)
        finally:
            os.close(descriptor)
    return None


def _elsewhere(path: Path) -> DirectoryLock:
    """Give what processes hold that are not the lead: nothing."""
    return DirectoryLock(path, (0, 0), _Lock(-1, "", known=False), None)


def _acquire(path: Path, thread: int | None) -> DirectoryLock:
    """Take the lock, or count once more where this process has it.

    Args:
        path: of the directory.
        thread: that is to train in it; None only records.
    """
    key = _key(path)
    entry = None if key is None else _held.get(key)
    if key is None or entry is None:
        descriptor = _opened(path, os.O_RDWR | os.O_CREAT)
        try:
            known = _wait(path, descriptor)
            now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
            holder = f"pid {os.getpid()} on {socket.gethostname()} since {now}"
            entry = _Lock(descriptor, holder, known)
            os.ftruncate(descriptor, 0)
            said = f"{entry.holder}\n".encode()
            with explain_disk_full(len(said), path / FILE):
                os.pwrite(descriptor, said, 0)
            status = os.fstat(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        key = status.st_dev, status.st_ino
        _held[key] = entry
    elif thread is not None and entry.training:
        # Locks of the kernel are the process's: to its own threads they refuse nothing.
        whose = "another thread of this process trains there"
        if thread in entry.training:
            whose = "a hook of this very run, or a run that it is within, saves there"
        raise DirectoryInUse(
            f"{path} is in use: {whose}, and two would write over each other's commits and "
            "records; give each a directory of its own"
        )
    entry.count += 1
    entry.training += [] if thread is None else [thread]
    return DirectoryLock(path, key, entry, thread)


def _wait(path: Path, descriptor: int) -> bool:
    """Lock the file, or give up; False where the file system knows no locks.

    Raises:
        InUse: another process has it.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in _UNKNOWN:
                _warn(path, error)
                return False
            if error.errno not in _REFUSED:
                raise
        if time.monotonic() > until:
            raise DirectoryInUse(
                f"{path} is in use: {_holder(descriptor)} trains there, and two would write over "
                "each other's commits and records; give this run another directory, or end that "
                "process first"
            )
        time.sleep(0.02)


_warned = False


def _warn(path: Path, error: OSError) -> None:
    global _warned
    if not _warned:
        _warned = True
        log.warning(
            "the file system of %s knows no locks (%s): nothing keeps a second process from "
            "training in it",
            path,
            error.strerror,
        )


def _opened(path: Path, flags: int) -> int:
    """Open the file, if it is one and no link: what that leads to is not of this run.

    Raises:
        OSError: it cannot be opened.
    """
    file = path / FILE
    try:
        descriptor = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise OSError(errno.EINVAL, "it is no file of its own", str(file))
        except OSError:
            os.close(descriptor)
            raise
    except OSError as error:
        error.add_note(
            f"{str(file)!r} is the lock of the run, a file that this user can write and no link; "
            "remove what is there, or give the run another directory"
        )
        raise
    return descriptor


def _key(path: Path) -> tuple[int, int] | None:
    try:
        status = (path / FILE).lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _holder(descriptor: int) -> str:
    """Read who has the lock. A file may say anything, and this goes to terminals."""
    said = re.fullmatch(_SAID, os.pread(descriptor, 500, 0).decode("ascii", "replace").strip())
    return said[0] if said else "another process"


def _forget() -> None:
    """Hold nothing in a forked child: the locks are its parent's."""
    global _guard
    _guard = threading.Lock()
    for entry in _held.values():
        os.close(entry.descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
