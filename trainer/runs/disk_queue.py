"""A queue on the disk: it keeps what is put in until that has been delivered."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.host.safe_open import is_still_there, open_own_folder, open_regular

log = logging.getLogger("entracte")

LIMIT = 2**28
"""Bytes on the disk at most; lines beyond are refused."""

_HEADER = 17
"""Bytes before the first line: the place of the first line that is not delivered."""

_BATCH = 2**18
"""Bytes of a batch, unless one line is longer: about a thousand values, and a tenth of a second."""

_CHUNK = 2**20
"""Bytes that are copied at once."""


class QueueClosed(RuntimeError):  # noqa: N818 (a state of affairs)
    """The queue was closed: its file no longer belongs to this process."""


class DiskQueue:
    """Lines of JSON in a file, appended at its end and removed at its beginning.

    When `put` returns, the line survives a kill of the process, and after `sync` also a power
    failure. A process that ends leaves what is not delivered to the next one. One process at a time
    has the queue open; any thread may put in, and one takes out; `QueueClosed` is raised once it is
    closed. All files are opened relative to one directory, which is opened once, and never through
    a link.

    Args:
        path: of the file; it and its folder are created.
        limit: bytes that the file may take. While delivered lines are cut off, a copy of at most
            half that size lies beside it.
        named: whether somebody else named the path, such as a store. Then nothing is created, no
            component of the path may be a link, and the files and the folder must belong to this
            user.

    Raises:
        OSError: the file cannot be written to, or is not a regular file (`UnsafeFile`).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     queue = DiskQueue(Path(folder, "queue.jsonl"))
    ...     queue.put({"do": "beat"})
    ...     lines, end = queue.peek_batch()
    ...     queue.acknowledge(end)
    ...     lines, queue.peek_batch()[0]
    ...     queue.close()
    True
    ([b'{"do": "beat"}\\n'], [])
    """

    def __init__(self, path: Path, *, limit: int = LIMIT, named: bool = False) -> None:
        self.path, self._limit, self._named = path, limit, named
        self._lock = threading.Lock()
        if named:
            self._folder = open_own_folder(path.parent)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._file = -1
        try:
            self._file = self._open_file(path.name, os.O_RDWR | (0 if named else os.O_CREAT))
            size = os.fstat(self._file).st_size
            if not size:
                os.fsync(self._folder)
            whole = self._end_of_last_line(size)  # an incomplete line was never accepted
            os.ftruncate(self._file, whole)
            head = os.pread(self._file, _HEADER, 0).strip()
            begin = int(head) if head.isdigit() else 0
            self._removed = 0  # delivered bytes that the file no longer holds
            self._begin = begin if _HEADER <= begin <= whole else _HEADER
            self._end = max(whole, _HEADER)
            os.pwrite(self._file, _format_header(self._begin), 0)
        except BaseException:
            if self._file >= 0:
                os.close(self._file)
            os.close(self._folder)
            raise

    def _open_file(self, name: str, flags: int) -> int:
        try:
            return open_regular(name, flags, 0o644, folder=self._folder, mine=self._named)
        except OSError as error:
            error.filename = os.fspath(self.path.with_name(name))
            raise

    def put(self, line: dict[str, Any], *, spare: int = 0) -> bool:
        """Append a line; return False, and keep nothing, if the file would pass its limit.

        Args:
            line: JSON data; nan, the infinities and any text are kept.
            spare: bytes below the limit that are reserved for more important lines.

        Raises:
            OSError: the disk is full, or fails.
        """
        data = json.dumps(line).encode() + b"\n"
        with self._locked() as file:
            if self._end + len(data) > self._limit - spare:
                return False
            try:
                _write(file, data, self._end)
            except OSError as error:
                os.ftruncate(file, self._end)
                error.add_note(f"nothing can be recorded in {self.path}")
                raise
            self._end += len(data)
        return True

    def peek_batch(self) -> tuple[list[bytes], int]:
        """Return the first lines that are not delivered, and the place where they end."""
        with self._locked() as file:
            begin, size = self._begin, self._end - self._begin
            data = os.pread(file, min(size, _BATCH), begin)
            if size > _BATCH and b"\n" not in data:
                data = os.pread(file, size, begin)
                data = data[: data.find(b"\n") + 1]
            data = data[: data.rfind(b"\n") + 1]
            place = self._removed + begin + len(data)
        return data.splitlines(keepends=True), place

    def acknowledge(self, place: int) -> None:
        """Remove the lines up to a place."""
        with self._locked() as file:
            self._begin = place - self._removed
            if self._begin == self._end:
                os.ftruncate(file, _HEADER)
                self._removed += self._end - _HEADER
                self._begin, self._end = _HEADER, _HEADER
            os.pwrite(file, _format_header(self._begin), 0)
            done, left = self._begin - _HEADER, self._end - self._begin
        if done >= max(left, self._limit // 4):
            # If the disk has no room for the copy, the next delivery tries again.
            with contextlib.suppress(OSError):
                self._compact()

    def set_aside(self, line: bytes) -> Path:
        """Keep a line that no store will ever accept in a file beside the queue."""
        path = self.path.with_suffix(".refused.jsonl")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with self._locked(), open(self._open_file(path.name, flags), "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return path

    @property
    def empty(self) -> bool:
        """Whether everything is delivered."""
        with self._lock:
            return self._begin == self._end

    def check(self) -> None:
        """Check that the queue is open."""
        with self._locked():
            pass

    def sync(self) -> None:
        """Make what was put in survive a power failure, in the file that is at the path.

        A deleted file is written again, with what waits.

        Raises:
            OSError: the file was replaced or cut short, or the disk fails.
        """
        with self._locked() as file:
            there, waits = is_still_there(self.path, file), self._begin < self._end
            cut = waits and os.fstat(file).st_size < self._end
            if there and waits and not cut:
                os.fsync(file)
        if there is None:
            self._compact()
            log.warning("%s was deleted during the run: it was written again", self.path)
        elif cut or not there:
            what = "was cut short" if there else "was replaced by another file"
            raise OSError(
                errno.ESTALE,
                f"the queue of the run {what} while it was in use, so no checkpoint is saved that "
                "would rely on what it held: move that file away, and start the run again",
                str(self.path),
            )

    def close(self) -> None:
        """Close the file; lines that are not delivered stay in it."""
        with self._locked() as file:
            self._file = -1
            os.close(file)
            os.close(self._folder)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Use the file exclusively, unless it is closed: then its number may be another file's."""
        with self._lock:
            if self._file < 0:
                raise QueueClosed(f"the queue {self.path} was closed")
            yield self._file

    def _end_of_last_line(self, size: int) -> int:
        while size:
            begin = max(0, size - _CHUNK)
            if found := os.pread(self._file, size - begin, begin).rfind(b"\n") + 1:
                return begin + found
            size = begin
        return 0

    def _compact(self) -> None:
        """Copy what waits to a file that replaces this one; lines may be put in meanwhile."""
        with self._locked() as file:
            source, folder = os.dup(file), os.dup(self._folder)
            first, end = self._begin, self._end
        beside, target = f"{self.path.name}.tmp", -1
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            target = os.open(beside, flags, 0o644, dir_fd=folder)
            _write(target, _format_header(_HEADER), 0)
            _copy(source, target, first, end, first - _HEADER)
            os.fsync(target)
            with self._locked() as file:
                _copy(source, target, end, self._end, first - _HEADER)
                os.fsync(target)
                os.replace(beside, self.path.name, src_dir_fd=folder, dst_dir_fd=folder)
                os.close(file)
                self._file, target = target, -1
                self._removed += first - _HEADER
                self._begin, self._end = _HEADER, self._end - first + _HEADER
            os.fsync(folder)
        finally:
            if target >= 0:
                os.close(target)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(beside, dir_fd=folder)
            os.close(source)
            os.close(folder)


def _write(file: int, data: bytes, at: int) -> None:
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written


def _copy(source: int, target: int, begin: int, end: int, shift: int) -> None:
    for at in range(begin, end, _CHUNK):
        _write(target, os.pread(source, min(_CHUNK, end - at), at), at - shift)


def _format_header(begin: int) -> bytes:
    return f"{begin:016d}\n".encode()
