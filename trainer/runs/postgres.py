"""PostgreSQL, for stores that several machines share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import psycopg

from trainer.host.escaping import escape_text
from trainer.host.redaction import redact_text
from trainer.runs.connections import Row, Unreachable, clean_parameters

SCHEMA = "entracte"
"""The schema of the tables, so that a database may hold others besides."""

STATEMENT_SECONDS = 30
"""A statement that takes longer is given up, and tried again later."""

_SILENCE: dict[str, Any] = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""A machine that is gone says nothing: after a minute it is taken to be."""

_MIGRATING = 7_017_280_452_245_743_464
"""Number of the lock under which tables are changed; any, if all use the same."""

_FOR_GOOD = ("22", "23", "54")
"""Classes of errors that another try does not mend: data, constraints, sizes."""


class PostgreSQL:
    """A connection to a server, which is made anew where it was lost.

    Args:
        url: of the database.
        patience: seconds to wait for the server, or for a lock.
        read_only: have the server refuse every change.

    Raises:
        Unreachable: there is no answer in time, or it refuses.
        ValueError: it is no URL of a database.
    """

    skipping = "FOR UPDATE SKIP LOCKED"

    def __init__(self, url: str, *, patience: float, read_only: bool = False) -> None:
        self.where = redact_text(url)
        _check(url)
        self._url, self._patience, self._read_only = url, patience, read_only
        self._lock = threading.RLock()
        self._depth = 0
        self._closed = False
        with self._translated():
            self._database = self._connected()

    def _connected(self) -> psycopg.Connection[Any]:
        database = psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=max(2, round(self._patience)),  # less is taken as 2
            client_encoding="utf8",
            application_name="entracte",
            **_SILENCE,
        )
        try:
            database.execute(
                "SELECT set_config('search_path', %s, false), "
                "set_config('statement_timeout', %s, false), "
                "set_config('lock_timeout', %s, false), "
                # What was delivered leaves the queue: a crash of the server must not undo it.
                "set_config('synchronous_commit', replace(current_setting('synchronous_commit'), "
                "'off', 'on'), false), "
                "set_config('default_transaction_read_only', %s, false)",
                (
                    SCHEMA,
                    f"{STATEMENT_SECONDS}s",
                    f"{max(1, round(1000 * self._patience))}ms",
                    "on" if self._read_only else "off",
                ),
            )
        except BaseException:
            database.close()
            raise
        return database

    @contextlib.contextmanager
    def _used(self) -> Iterator[psycopg.Connection[Any]]:
        """Use the connection alone; one that was lost is made anew, once this is asked again."""
        with self._lock, self._translated():
            if self._database.closed and not self._closed and not self._depth:
                self._database = self._connected()
            yield self._database

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run a statement and give the rows that it returns."""
        with self._used() as database:
            cursor = database.execute(_placed(statement), clean_parameters(parameters))
            return cursor.fetchall() if cursor.description else []

    def many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row of parameters, all of them at once or none."""
        with self.transaction(), self._translated(), self._database.cursor() as cursor:
            cursor.executemany(_placed(statement), map(clean_parameters, rows))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is run within happens at once, or not at all."""
        with self._used() as database:
            depth = self._depth
            name = f"level_{depth}"
            database.execute(f"SAVEPOINT {name}" if depth else "BEGIN")
            self._depth += 1
            try:
                yield
                database.execute(f"RELEASE {name}" if depth else "COMMIT")
            except BaseException:
                try:
                    database.execute(f"ROLLBACK TO {name}" if depth else "ROLLBACK")
                except psycopg.Error:  # it is lost, which undoes all
                    database.close()
                raise
            finally:
                self._depth -= 1

    @contextlib.contextmanager
    def migrating(self) -> Iterator[None]:
        """Be a transaction that one process at a time is in, to make or change tables."""
        with self.transaction():
            self.execute("SELECT pg_advisory_xact_lock(?)", (_MIGRATING,))
            self.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            yield

    def has_table(self, name: str) -> bool:
        """Say whether a table is there."""
        return self.execute("SELECT to_regclass(?)", (f"{SCHEMA}.{name}",)) != [(None,)]

    def now(self) -> float:
        """Read the server's clock."""
        ((now,),) = self.execute("SELECT CAST(extract(epoch FROM clock_timestamp()) AS float8)")
        return float(now)

    def close(self) -> None:
        """End the connection; it cannot be used again."""
        self._closed = True
        self._database.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            misused = isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None
            if misused or (error.sqlstate or "")[:2] in _FOR_GOOD:
                raise
            while isinstance(error.__context__, psycopg.Error):
                error = error.__context__  # of which the last is but a consequence
            said = redact_text(escape_text(" ".join(str(error).split()))) or type(error).__name__
            raise Unreachable(f"the store {self.where} cannot be reached: {said}") from error


def _check(url: str) -> None:
    """Refuse a URL that PostgreSQL's library reads otherwise than it is meant.

    Its own messages repeat what they stumble over, which is mostly a piece of a password.

    Raises:
        ValueError: it is none, or a character that separates its parts stands within one.
    """
    try:
        parts = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        parts = {}
    given, places = redact_text(url) != url, ("host", "port", "dbname")
    hidden = not given or any(name.endswith("password") for name in parts)
    if not parts or not hidden or any("@" in str(parts.get(name, "")) for name in places):
        raise ValueError(
            f"a store's URL is postgresql://USER@HOST/DATABASE; got {redact_text(url)!r}, which "
            "PostgreSQL's library cannot take apart: write special characters in its parts as "
            "%40 (@), %2F (/), %25 (%), %20 (a space); better, leave the password to PGPASSWORD "
            "or ~/.pgpass"
        )


def _placed(statement: str) -> Any:
    return statement.replace("?", "%s")
