"""Files to append to, which are checked to be still at their path before each checkpoint."""

from __future__ import annotations

import errno
import logging
import os
import weakref
from pathlib import Path

from trainer.host.atomic_files import atomic_replace, explain_disk_full
from trainer.host.safe_open import is_still_there, open_regular

CHUNK = 2**20
"""Bytes copied at once."""

log = logging.getLogger("entracte")


class AppendFile:
    """A file to append to. What is appended is in the file at once.

    If a file is deleted or replaced while it is open, writes still succeed, but nobody finds what
    they write. So `check` runs before every checkpoint: a deleted file is written again from the
    open descriptor, with a warning. One that was replaced or cut short is an error, since its
    present content belongs to somebody else.

    Args:
        path: of the file, which is created; its folder must exist.
        who: writes it, for messages.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = AppendFile(Path(folder, "a.txt"), "a writer")
    ...     place = file.append(b"first"), file.append(b", second")
    ...     file.path.unlink()
    ...     file.flush()
    ...     file.close()
    ...     print(place, file.path.read_text())
    (0, 5) first, second
    """

    def __init__(self, path: Path, who: str) -> None:
        self.path, self._who = path, who
        self._end = self._lost = 0
        self._open()

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC  # readable, to copy it
        self._file = open_regular(self.path, flags, follow=True)  # the user chose the path
        self._let_go = weakref.finalize(self, os.close, self._file)

    def append(self, data: bytes) -> int:
        """Append data, or nothing of it if that fails, and return the offset where it begins."""
        begin = os.fstat(self._file).st_size
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            os.ftruncate(self._file, begin)
            with explain_disk_full(len(data), self.path):
                raise
        self._lost += max(self._end - begin, 0)
        self._end = begin + len(data)
        return begin

    def truncate(self, end: int) -> None:
        """Remove everything from an offset on."""
        os.ftruncate(self._file, end)
        self._end = end

    def check(self) -> None:
        """Write a deleted file again; raise OSError if it was replaced or cut short."""
        size = os.fstat(self._file).st_size
        there = is_still_there(self.path, self._file)
        if there is None:
            self._write_again(size)
            return
        if not there:
            self._refuse("was replaced by another file")
        if lost := self._lost + max(self._end - size, 0):
            self._refuse(f"was cut short, by {lost:,} bytes,")

    def flush(self) -> None:
        """Check the file, and wait until it is on the disk."""
        self.check()
        os.fsync(self._file)

    def close(self) -> None:
        """Check the file, and close it whatever the result."""
        try:
            self.check()
        finally:
            self._let_go()

    def _write_again(self, size: int) -> None:
        try:
            with atomic_replace(self.path) as beside, beside.open("wb") as target:
                for place in range(0, size, CHUNK):
                    target.write(os.pread(self._file, CHUNK, place))
            before = self._let_go
            self._open()
            before()
        except OSError as error:
            error.add_note(
                f"{str(self.path)!r} was deleted while {self._who} was writing it, and cannot be "
                "written again: leave a run's directory alone while the run is in progress"
            )
            raise
        log.warning(
            "%s was deleted while %s was writing it: it was written again, with all its %d bytes",
            *(self.path, self._who, size),
        )

    def _refuse(self, what: str) -> None:
        raise OSError(
            errno.ESTALE,
            f"it {what} while {self._who} was writing it, so no checkpoint is saved that would "
            "claim its records: put the file back as it was, or move the present one away, and "
            "start the run again, which resumes from the previous checkpoint",
            str(self.path),
        )
