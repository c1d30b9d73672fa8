"""A queue on the disk: what is put in it is kept until it has been delivered."""

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

from trainer.host.safe_open import open_regular, own_folder, still_there

log = logging.getLogger("entracte")

LIMIT = 2**28
"""Bytes on the disk at most; what comes beyond is refused."""

_HEAD = 17
"""Bytes before the first line: they tell where the first is that was not delivered."""

_BATCH = 2**18
"""Bytes that are delivered at once, or one line: some thousand values, and a tenth of a second."""

_CHUNK = 2**20
"""Bytes that are copied at once."""


class QueueClosed(RuntimeError):  # noqa: N818 (a state of affairs)
    """The queue was closed: its file is no longer this process's to touch."""


class DiskQueue:
    """Lines of JSON in a file, put in at its end and taken out at its beginning.

    A line is on record when `put` returns, also where the process is killed right after, and `sync`
    makes it outlast a power failure. A process that ends leaves what is not delivered to the next
    one. One process at a time has it open; any thread puts in, and one takes out. All files are
    opened in one directory, which is opened once, and none through a link.

    Args:
        path: of the file; it and its folder are made.
        limit: bytes that the file may take. While lines that were delivered are cut off, a copy
            that is at most half as long lies beside it.
        named: whether somebody else named the path, a store say. Then nothing is made, no component
            of the path may be a link, and the files and the folder must belong to this user.

    Raises:
        OSError: the file cannot be written to, or is none (`UnsafeFile`).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     journal = DiskQueue(Path(folder, "queue.jsonl"))
    ...     journal.put({"do": "beat"})
    ...     lines, end = journal.peek_batch()
    ...     journal.acknowledge(end)
    ...     lines, journal.peek_batch()[0]
    ...     journal.close()
    True
    ([b'{"do": "beat"}\\n'], [])
    """

    def __init__(self, path: Path, *, limit: int = LIMIT, named: bool = False) -> None:
        self.path, self._limit, self._named = path, limit, named
        self._lock = threading.Lock()
        if named:
            self._folder = own_folder(path.parent)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._file = -1
        try:
            self._file = self._opened(path.name, os.O_RDWR | (0 if named else os.O_CREAT))
            size = os.fstat(self._file).st_size
            if not size:
                os.fsync(self._folder)
            whole = self._after_last_line(size)  # a torn line was never accepted
            os.ftruncate(self._file, whole)
            begin = _beginning(os.pread(self._file, _HEAD, 0))
            self._moved = 0  # bytes that were before the file's contents, and are delivered
            self._begin = begin if _HEAD <= begin <= whole else _HEAD
            self._end = max(whole, _HEAD)
            os.pwrite(self._file, _head(self._begin), 0)
        except BaseException:
            if self._file >= 0:
                os.close(self._file)
            os.close(self._folder)
            raise

    def _opened(self, name: str, flags: int) -> int:
        try:
            return open_regular(name, flags, 0o644, folder=self._folder, mine=self._named)
        except OSError as error:
            error.filename = os.fspath(self.path.with_name(name))
            raise

    def put(self, line: dict[str, Any], *, spare: int = 0) -> bool:
        """Put a line in; False, and nothing is kept, where the file would pass its limit.

        Args:
            line: what JSON knows; nan, the infinities and any text are kept.
            spare: bytes below the limit that are left to lines of more weight.

        Raises:
            OSError: the disk is full, or fails.
            Closed: the queue was closed.
        """
        data = json.dumps(line).encode() + b"\n"
        with self._open() as file:
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
        """Give the first lines that are not delivered, and the place where they end.

        Raises:
            Closed: the queue was closed.
        """
        with self._open() as file:
            begin, size = self._begin, self._end - self._begin
            data = os.pread(file, min(size, _BATCH), begin)
            if size > _BATCH and b"\n" not in data:
                data = os.pread(file, size, begin)
                data = data[: data.find(b"\n") + 1]
            data = data[: data.rfind(b"\n") + 1]
            place = self._moved + begin + len(data)
        return data.splitlines(keepends=True), place

    def acknowledge(self, place: int) -> None:
        """Take out the lines up to a place.

        Raises:
            Closed: the queue was closed.
        """
        with self._open() as file:
            self._begin = place - self._moved
            if self._begin == self._end:
                os.ftruncate(file, _HEAD)
                self._moved += self._end - _HEAD
                self._begin, self._end = _HEAD, _HEAD
            os.pwrite(file, _head(self._begin), 0)
            done, left = self._begin - _HEAD, self._end - self._begin
        if done >= max(left, self._limit // 4):
            # Where the disk has no room for it, it is tried again after the next delivery.
            with contextlib.suppress(OSError):
                self._compact()

    def set_aside(self, line: bytes) -> Path:
        """Keep a line that no store will ever take in a file beside the queue."""
        path = self.path.with_suffix(".refused.jsonl")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with self._open(), open(self._opened(path.name, flags), "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return path

    @property
    def empty(self) -> bool:
        """Whether all is delivered."""
        with self._lock:
            return self._begin == self._end

    def check(self) -> None:
        """See that it is open.

        Raises:
            Closed: it is not.
        """
        with self._open():
            pass

    def sync(self) -> None:
        """Make what was put in outlast a power failure, in the file that is found at the path.

        A file that was deleted is written again, with what waits.

        Raises:
            OSError: the file was replaced or cut short, or the disk fails.
            Closed: the queue was closed.
        """
        with self._open() as file:
            there = self._is_there(file)
        if not there:
            self._compact()
            log.warning("%s was deleted while the run goes on: it was written again", self.path)
        elif not self.empty:
            with self._open() as file:
                os.fsync(file)

    def _is_there(self, file: int) -> bool:
        """Say whether the file is at its path, as it was written.

        Raises:
            OSError: something else is there.
        """
        there, what = still_there(self.path, file), ""
        if there is None:
            return False
        if not there:
            what = "was replaced by another file"
        elif os.fstat(file).st_size < self._end and self._begin < self._end:
            what = "was cut short"
        if what:
            raise OSError(
                errno.ESTALE,
                f"the queue of the run {what} while it was in use, so no checkpoint is made that "
                "would claim what it held: move what is there now away, and start the run again",
                str(self.path),
            )
        return True

    def close(self) -> None:
        """Close the file; what is not delivered stays in it."""
        with self._open() as file:
            self._file = -1
            os.close(file)
            os.close(self._folder)

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        """Use the file alone, while it is one: its number may by now be another file's."""
        with self._lock:
            if self._file < 0:
                raise QueueClosed(f"the queue {self.path} was closed")
            yield self._file

    def _after_last_line(self, size: int) -> int:
        while size:
            begin = max(0, size - _CHUNK)
            if found := os.pread(self._file, size - begin, begin).rfind(b"\n") + 1:
                return begin + found
            size = begin
        return 0

    def _compact(self) -> None:
        """Copy what waits to a file that takes this one's place; lines may be put in meanwhile."""
        with self._open() as file:
            source, folder = os.dup(file), os.dup(self._folder)
            first, end = self._begin, self._end
        beside, target = f"{self.path.name}.tmp", -1
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            target = os.open(beside, flags, 0o644, dir_fd=folder)
            _write(target, _head(_HEAD), 0)
            _copy(source, target, first, end, first - _HEAD)
            os.fsync(target)
            with self._open() as file:
                _copy(source, target, end, self._end, first - _HEAD)
                os.fsync(target)
                os.replace(beside, self.path.name, src_dir_fd=folder, dst_dir_fd=folder)
                os.close(file)
                self._file, target = target, -1
                self._moved += first - _HEAD
                self._begin, self._end = _HEAD, self._end - first + _HEAD
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


def _head(begin: int) -> bytes:
    return f"{begin:016d}\n".encode()


def _beginning(head: bytes) -> int:
    try:
        return int(head)
    except ValueError:
        return -1
