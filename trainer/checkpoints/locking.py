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
from collections.abc import Callable
from pathlib import Path

from trainer.paths import local
from trainer.processes import is_lead, of_lead

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


class InUse(RuntimeError):  # noqa: N818 - what is the case, as its message says
    """Another process trains in this run's directory."""


@dataclasses.dataclass
class _Lock:
    """What this process holds, however many of its hooks asked for it."""

    descriptor: int
    holder: str
    count: int = 1


_held: dict[tuple[int, int], _Lock] = {}
"""By device and inode, which are the same whatever path leads to the file."""

_guard = threading.Lock()


def lock(directory: str | os.PathLike[str]) -> Callable[[], None]:
    """Take a run's directory for this process, to train in it.

    It may be taken several times in one process; it is free again when all have released it, or
    when the process ends. On several processes all must call it, and the lead takes it. Where the
    file system knows no locks, a warning says so, once, and training goes on.

    Args:
        directory: of the run.

    Returns:
        A function that releases it; called again, it does nothing.

    Raises:
        InUse: another process trains in it.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as run:
    ...     release = lock(run)
    ...     print(held(run))
    ...     release()
    ...     print(held(run))
    pid ... on ... since ...
    None
    """
    path, refusal, release = local(directory, "lock"), None, _nothing
    if is_lead():
        try:
            release = lock_here(path)
        except (InUse, OSError) as error:
            refusal = error
    if of_lead({"refused": refusal is not None})["refused"]:  # or the others wait for the lead
        raise refusal or InUse(f"the lead could not take {path}: its own error says why")
    return release


def lock_here(directory: str | os.PathLike[str]) -> Callable[[], None]:
    """Take a run's directory as `lock` does, for one process that asks no other.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as run:
    ...     lock_here(run)()
    """
    with _guard:
        return _taken(local(directory, "lock"))


def held(directory: str | os.PathLike[str], *, by_others: bool = False) -> str | None:
    """Say which process trains in a run's directory: `pid 123 on host since ...`.

    Args:
        directory: of the run, which need not be there; nothing in it is changed.
        by_others: leave this process out.

    Returns:
        None where none does, or the file system knows no locks.

    Raises:
        OSError: the file is no file of its own, or cannot be read.
    """
    path = local(directory, "lock")
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


def _nothing() -> None:
    pass


def _taken(path: Path) -> Callable[[], None]:
    """Take the lock, or count once more where this process has it."""
    key = _key(path)
    if key in _held:
        entry = _held[key]
        entry.count += 1
    else:
        descriptor = _opened(path, os.O_RDWR | os.O_CREAT)
        try:
            _wait(path, descriptor)
            now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
            entry = _Lock(descriptor, f"pid {os.getpid()} on {socket.gethostname()} since {now}")
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{entry.holder}\n".encode(), 0)
            status = os.fstat(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        key = status.st_dev, status.st_ino
        _held[key] = entry
    left = [entry]

    def release() -> None:
        with _guard:
            if not left or _held.get(key) is not left.pop():
                return
            entry.count -= 1
            if not entry.count:
                del _held[key]
                os.ftruncate(entry.descriptor, 0)  # an empty file is no sign of a run
                os.close(entry.descriptor)

    return release


def _wait(path: Path, descriptor: int) -> None:
    """Lock the file, or give up.

    Raises:
        InUse: another process has it.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNKNOWN:
                return _warn(path, error)
            if error.errno not in _REFUSED:
                raise
        if time.monotonic() > until:
            raise InUse(
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
