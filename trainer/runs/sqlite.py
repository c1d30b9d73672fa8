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
from trainer.runs.connections import Row, Unreachable, clean_parameters

_CANNOT_WRITE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
"""What SQLite answers where it cannot make or change the files beside a database."""


class SQLite:
    """A file that many processes of one machine read and write at once, one writer at a time.

    It keeps a write-ahead log, for which file systems on a network do not do: there, and where
    several machines share a store, take PostgreSQL.

    Args:
        path: of the file.
        create: make it, and its folder, where there is none.
        patience: seconds to wait for a lock.
        read_only: change nothing. A file on a disk that cannot be written to is opened as one that
            nobody changes; where it has a write-ahead log, a copy of both is.

    Raises:
        FileNotFoundError: there is no file, and none shall be made.
        Unreachable: it cannot be opened, is no store's, or stays locked.
    """

    skipping = ""

    def __init__(
        self, path: Path, *, create: bool, patience: float, read_only: bool = False
    ) -> None:
        self.where = str(path)
        self._path, self._patience = path, patience
        self._lock = threading.RLock()
        self._depth = 0
        with self._translated():
            there = path.exists()
            if there and not path.is_file():  # to open a pipe would wait for its other end
                raise OSError(
                    f"it is {describe_file_type(path.stat().st_mode)}, and must be a file"
                )
        if not there and not create:
            raise FileNotFoundError(
                f"there is no store at {self.where}: give the directory that holds the runs, or "
                "the URL of the store that they were given"
            )
        with self._translated():
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._copy: tempfile.TemporaryDirectory[str] | None = None
            self._database = self._read_only() if read_only else self._connected(path, create)
        try:
            self._file = self._at_path()
            if read_only:  # and let no trigger or view of a stranger's do more than ours
                self.execute("PRAGMA query_only = ON")
                self.execute("PRAGMA trusted_schema = OFF")
            else:
                self._log_ahead(time.monotonic() + patience)
                # Durable at every commit: what was delivered leaves the queue on the disk.
                self.execute("PRAGMA synchronous = FULL")
        except BaseException:
            self.close()
            raise

    def _connected(self, path: Path, create: bool, mode: str = "") -> sqlite3.Connection:
        return sqlite3.connect(
            f"file:{quote(os.fsencode(path))}?mode={mode or ('rwc' if create else 'rw')}",
            uri=True,
            timeout=self._patience,
            isolation_level=None,
            check_same_thread=False,
        )

    def _read_only(self) -> sqlite3.Connection:
        database = self._connected(self._path, False, "ro")
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
            return self._connected(self._path, False, "ro&immutable=1")
        self._copy = tempfile.TemporaryDirectory(prefix="entracte-store-")
        for file in (self._path, log):
            shutil.copyfile(file, Path(self._copy.name, file.name))
        return self._connected(Path(self._copy.name, self._path.name), False)

    def _log_ahead(self, deadline: float) -> None:
        """Switch to the write-ahead log; while another process does, SQLite does not wait."""
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

    def _at_path(self) -> tuple[int, int]:
        with self._translated():
            status = os.stat(self._path)
        return status.st_dev, status.st_ino

    def _check(self) -> None:
        """Refuse a file that is not at its path any more: what it is told, nobody would find."""
        if not self._depth and self._at_path() != self._file:
            raise Unreachable(f"the store {self.where} was replaced by another file: open it again")

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run a statement and give the rows that it returns."""
        with self._lock, self._translated():
            self._check()
            return self._database.execute(statement, clean_parameters(parameters)).fetchall()

    def many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row of parameters, all of them at once or none."""
        with self.transaction(), self._translated():
            self._database.executemany(statement, map(clean_parameters, rows))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is run within happens at once, or not at all; one writer at a time."""
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
                    with contextlib.suppress(Unreachable):  # the first failure is the one to tell
                        self.execute(f"ROLLBACK TO {name}" if depth else "ROLLBACK")
                raise
            finally:
                self._depth -= 1
            self._check()

    @contextlib.contextmanager
    def migrating(self) -> Iterator[None]:
        """Be a transaction that one process at a time is in, as each is here."""
        with self.transaction():
            yield

    def has_table(self, name: str) -> bool:
        """Say whether a table is there."""
        found = self.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)
        )
        return bool(found)

    def now(self) -> float:
        """Read this machine's clock."""
        return time.time()

    def close(self) -> None:
        """End the connection; it cannot be used again."""
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
            raise  # for good
        except (sqlite3.OperationalError, OSError) as error:
            raise Unreachable(f"the store {self.where} cannot be reached: {error}") from error
        except sqlite3.DatabaseError as error:
            raise Unreachable(
                f"{self.where} is not the file of a store, or damaged: {error}"
            ) from error
