"""The file `<run>/lock`: how it is opened, and what stands in it for people to read."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from pathlib import Path

log = logging.getLogger("entracte")

FILE = "lock"
"""The name of the file in the run directory."""

REFUSED = (errno.EACCES, errno.EAGAIN)
"""Error numbers where another process holds the lock."""

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""Error numbers of a file system without locks."""

_HOLDER = re.compile(r"pid \d+ on [\w.:-]+ since [\d :+-]+")


def open_lock_file(directory: Path, flags: int) -> int:
    """Open the lock file if it is a regular file with one name, and no link.

    Raises:
        OSError: it cannot be opened.
    """
    file = directory / FILE
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


def identify_lock_file(directory: Path) -> tuple[int, int] | None:
    """Return device and inode of the lock file, None if there is no file.

    They are the same for every path that leads to it.
    """
    try:
        status = (directory / FILE).lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def read_holder(descriptor: int) -> str:
    """Read which process holds the lock.

    The file may contain anything, and the answer is printed to terminals: other text is not
    repeated.
    """
    text = os.pread(descriptor, 500, 0).decode("ascii", "replace").strip()
    return text if _HOLDER.fullmatch(text) else "another process"


_warned = False


def warn_unsupported(directory: Path, error: OSError) -> None:
    """Log once per process that a file system has no locks."""
    global _warned
    if not _warned:
        _warned = True
        log.warning(
            f"the file system of {directory} knows no locks ({error.strerror}): nothing keeps a "
            "second "
            "process from training in it"
        )
