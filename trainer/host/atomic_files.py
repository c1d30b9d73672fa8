"""Files that survive a power failure: replaced as a whole, with their folder's entries."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.host.safe_open import create_new


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable; files sync their own contents.

    >>> sync_folder(Path.cwd())
    """
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, a used quota, or a limit on file sizes."""


@contextlib.contextmanager
def explain_disk_full(size: int | None, file: Path) -> Iterator[None]:
    """Add to an error of a full disk the file, the bytes needed (None: not known) and those free.

    The file's folder must exist.

    Raises:
        OSError: of the class and number of the system's error.

    >>> with explain_disk_full(5, Path("a.txt").absolute()):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    OSError: [Errno 28] No space left on device: 5 bytes are needed and ... are free: '...a.txt'
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL_ERRORS or (size is None and " are free" in str(error)):
            raise
        room = os.statvfs(file.parent)
        free = f"{room.f_bavail * room.f_frsize:,}"
        needed = f"{free} bytes" if size is None else f"{size:,} bytes are needed and {free}"
        space = f"{needed} are free"
        if error.errno != errno.ENOSPC:
            space += ", but this user may not have them"
        where = error.filename or str(file)  # the error may name a more precise one
        raise OSError(error.errno, f"{os.strerror(error.errno)}: {space}", where) from None


def check_free_space(file: Path, size: int, *, largest: int | None = None) -> None:
    """Check that the disk, and the limit on file sizes, leave room for `size` bytes.

    The disk is that of the nearest existing folder of `file`. If the bytes are in several files,
    `largest` of them are in one.

    Raises:
        OSError: there is not; the message has the bytes needed and free.

    >>> check_free_space(Path.cwd() / "new" / "file", 1)
    """
    folder = next(parent for parent in file.parents if parent.exists())
    with explain_disk_full(size, folder / file.name):
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY and (largest or size) > limit:
            raise OSError(errno.EFBIG, "", str(file))
        room = os.statvfs(folder)
        if size > room.f_bavail * room.f_frsize:
            raise OSError(errno.ENOSPC, "", str(file))


def write_durably(file: Path, content: Any) -> None:
    """Write a new file durably: bytes, or anything with a buffer of them. An error names the file.

    Raises:
        OSError: the file exists, or cannot be written.
    """
    left = memoryview(content).cast("B")
    with explain_disk_full(len(left), file), open(file, "xb", buffering=0) as opened:
        while left:
            left = left[opened.write(left) :]
        os.fsync(opened.fileno())


@contextlib.contextmanager
def atomic_replace(file: Path, *, beside: str = "") -> Iterator[Path]:
    """Yield a path beside a file to write to, and then replace the file with it, durably.

    A reader finds the old file or the new one, complete, whatever happens; if writing fails, the
    old one stays and nothing is left beside it. The new one has the permissions of a file that this
    process creates, whatever wrote it.

    Args:
        file: to replace or to create; its folder must exist.
        beside: prefix of the temporary file's name, if not the file's own: readers may already
            pick up what is named like the file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_replace(Path(folder, "a.txt")) as beside:
    ...         _ = beside.write_text("whole")
    ...     print(Path(folder, "a.txt").read_text(), len(os.listdir(folder)))
    whole 1
    """
    other = file.with_name(f"{beside or file.name}.{os.getpid()}.tmp")
    try:
        with explain_disk_full(None, file):  # Python's own error of a write names no file
            os.close(create_new(other))
            mode = other.stat().st_mode
            yield other
            if other.stat().st_mode != mode:  # safetensors creates it again, for its owner alone
                other.chmod(stat.S_IMODE(mode))
            with other.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(other, file)
    except BaseException:
        other.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)
