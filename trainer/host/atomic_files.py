"""What outlasts a power failure: files that are replaced as a whole, and a folder's entries."""

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
    """Make durable what was made, renamed or replaced in a folder; files sync their contents.

    Raises:
        OSError: the folder is missing, or the disk fails.

    >>> sync_folder(Path.cwd())
    """
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""How a system says that a disk, a quota or a limit of files' sizes leaves no room."""


@contextlib.contextmanager
def explain_disk_full(size: int | None, file: Path) -> Iterator[None]:
    """Say which file there was no room for, the bytes that it needs and those that are free.

    Args:
        size: bytes that are to be written; None where that is not known.
        file: to write them to; its folder must exist.

    Raises:
        OSError: of the kind, and with the number, that the system gave.

    >>> with explain_disk_full(5, Path("a.txt").absolute()):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    OSError: [Errno 28] No space left on device: 5 bytes are needed and ... are free: '...a.txt'
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL or (size is None and " are free" in str(error)):
            raise
        room = os.statvfs(file.parent)
        free = f"{room.f_bavail * room.f_frsize:,}"
        said = f"{free} bytes are free"
        if size is not None:
            said = f"{size:,} bytes are needed and {free} are free"
        if error.errno != errno.ENOSPC:
            said += ", but this user may not have them"
        where = error.filename or str(file)  # what knows more of it is named
        raise OSError(error.errno, f"{os.strerror(error.errno)}: {said}", where) from None


def check_free_space(file: Path, size: int, *, largest: int | None = None) -> None:
    """Check that a disk, and a limit of files' sizes, leave room for a file that is not there yet.

    Args:
        file: to write; the disk is that of the nearest of its folders that exists.
        size: bytes in all.
        largest: bytes of the largest file, where they are in several.

    Raises:
        OSError: there is less; the message has the bytes needed and those free.

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


def write_whole(file: Path, content: Any) -> None:
    """Write a new file, durably; where it fails, the error names the file.

    Args:
        file: that is not there yet.
        content: bytes, or anything else with a buffer of them.

    Raises:
        OSError: the file cannot be written.
    """
    left = memoryview(content).cast("B")
    with explain_disk_full(len(left), file), open(file, "xb", buffering=0) as opened:
        while left:
            left = left[opened.write(left) :]
        os.fsync(opened.fileno())


@contextlib.contextmanager
def atomic_replace(file: Path, *, beside: str = "") -> Iterator[Path]:
    """Give a path beside a file to write to, which then takes the file's place, durably.

    A reader finds the old file or the new one, whole, whatever happens; where writing fails, the
    old one stays and nothing is left beside it. The new one may be read by whoever may read files
    that this process makes, however it is written.

    Args:
        file: to replace or to make; its folder must exist.
        beside: how the name of the one beside it begins, where not as the file's: what is named
            like the file may be read already.

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
            if other.stat().st_mode != mode:  # safetensors makes it anew, for its owner alone
                other.chmod(stat.S_IMODE(mode))
            with other.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(other, file)
    except BaseException:
        other.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)
