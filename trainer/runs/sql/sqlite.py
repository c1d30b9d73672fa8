"""SQLite, for stores that the processes of one machine share."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trainer.host.safe_open import describe_file_type
from trainer.runs.sql.connection import Row, Unreachable, clean_parameters

_CANNOT_WRITE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
"""Errors of SQLite where it cannot create or change the files beside a database."""


class SQLite:
    """A file that many processes of one machine read and write at once, one writer at a time.

    It uses a write-ahead log, which does not work on network file systems. For those, and for
    stores that several machines share, use PostgreSQL. Read-only, a file on a read-only disk is
    opened as immutable; if it has a write-ahead log, a copy of both is opened.
    """

    skip_locked = ""

    def __init__(
        self, path: Path, *, create: bool, timeout: float, read_only: bool = False
    ) -> None:
        self.label = str(path)
        self._path, self._timeout = path, timeout
        self._lock = threading.RLock()
        self._depth = 0
        with self._translated():
            exists = path.exists()
            if exists and not path.is_file():  # to open a pipe would wait for its other end
                raise OSError(
                    f"it is {describe_file_type(path.stat().st_mode)}, and must be a file"
                )
        if not exists and not create:
            raise FileNotFoundError(
                f"there is no store at {self.label}: give the directory that holds the runs, or "
                "the URL of the store that they were given"
            )
        with self._translated():
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._copy: tempfile.TemporaryDirectory[str] | None = None
            self._database = self._open_read_only() if read_only else self._open(path, create)
        try:
            self._file = self._stat_path()
            if read_only:  # also against triggers and views in a file of unknown origin
                self.execute("PRAGMA query_only = ON")
                self.execute("PRAGMA trusted_schema = OFF")
            else:
                self._enable_write_ahead_log(time.monotonic() + timeout)
                # Durable at every commit: what was delivered is removed from the queue on the disk.
                self.execute("PRAGMA synchronous = FULL")
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path, create: bool, mode: str = "") -> sqlite3.Connection:
        return sqlite3.connect(
            f"file:{quote(os.fsencode(path))}?mode={mode or ('rwc' if create else 'rw')}",
            uri=True,
            timeout=self._timeout,
            isolation_level=None,
            check_same_thread=False,
        )

    def _open_read_only(self) -> sqlite3.Connection:
        database = self._open(self._path, False, "ro")
        try:
            database.execute("SELECT 1 FROM sqlite_master").fetchall()
        except sqlite3.OperationalError as error:
            database.close()
            if error.sqlite_errorcode & 0xFF not in _CANNOT_WRITE:
                raise
        else:
            return database
        log = self._path.with_name(f"{self._path.name}-wal")
        if not log.is_file() or not log.stat().st_size:
            return self._open(self._path, False, "ro&immutable=1")
        self._copy = tempfile.TemporaryDirectory(prefix="entracte-store-")
        for file in (self._path, log):
            shutil.copyfile(file, Path(self._copy.name, file.name))
        return self._open(Path(self._copy.name, self._path.name), False)

    def _enable_write_ahead_log(self, deadline: float) -> None:
        """Switch to the write-ahead log; SQLite does not wait while another process does so."""
        while True:
            try:
                self.execute("PRAGMA journal_mode = WAL")
            except Unreachable as error:
                busy = getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def _stat_path(self) -> tuple[int, int]:
        with self._translated():
            status = os.stat(self._path)
        return status.st_dev, status.st_ino

    def _check_not_replaced(self) -> None:
        """Check that the open file is still at its path; else nobody would find what is written."""
        if not self._depth and self._stat_path() != self._file:
            raise Unreachable(f"the store {self.label} was replaced by another file: open it again")

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run a statement and return its rows."""
        with self._lock, self._translated():
            self._check_not_replaced()
            return self._database.execute(statement, clean_parameters(parameters)).fetchall()

    def execute_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row of parameters, in one transaction."""
        with self.transaction(), self._translated():
            self._database.executemany(statement, map(clean_parameters, rows))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Run all statements of the block, or none of them; one writer at a time."""
        with self._lock:
            depth = self._depth
            name = f"level_{depth}"
            self.execute(f"SAVEPOINT {name}" if depth else "BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
                self.execute(f"RELEASE {name}" if depth else "COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    with contextlib.suppress(Unreachable):  # the first failure is the one to report
                        self.execute(f"ROLLBACK TO {name}" if depth else "ROLLBACK")
                raise
            finally:
                self._depth -= 1
            self._check_not_replaced()

    migration = transaction

    def has_table(self, name: str) -> bool:
        """Return whether a table exists."""
        statement = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
        return bool(self.execute(statement, (name,)))

    def now(self) -> float:
        """Read this machine's clock."""
        return time.time()

    def close(self) -> None:
        """Close the connection; it cannot be used again."""
        with self._lock:
            self._database.close()
            if self._copy is not None:
                self._copy.cleanup()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except Unreachable:
            raise
        except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError):
            raise  # a retry cannot mend these
        except (sqlite3.OperationalError, OSError) as error:
            raise Unreachable(f"the store {self.label} cannot be reached: {error}") from error
        except sqlite3.DatabaseError as error:
            raise Unreachable(
                f"{self.label} is not the file of a store, or damaged: {error}"
            ) from error
