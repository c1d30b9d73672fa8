"""PostgreSQL, for stores that several machines share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from trainer.host.escaping import escape_text
from trainer.host.redaction import redact_text
from trainer.runs.sql.connection import Row, Unreachable, clean_parameters

SCHEMA = "entracte"
"""Schema of the tables, so that a database may hold others besides."""

STATEMENT_SECONDS = 30
"""A statement that takes longer is canceled, and retried later."""

_KEEPALIVE: dict[str, Any] = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""A machine that has gone away says nothing: after a minute its connection counts as lost."""

_MIGRATION_LOCK = 7_017_280_452_245_743_464
"""Number of the lock under which tables are changed; any number, if all processes use the same."""

_PERMANENT = ("22", "23", "54")
"""Classes of errors that a retry does not mend: data, constraints, sizes."""


class PostgreSQL:
    """A connection to a server; it is reopened after it was lost."""

    skip_locked = "FOR UPDATE SKIP LOCKED"

    def __init__(self, url: str, *, timeout: float, read_only: bool = False) -> None:
        self.label = redact_text(url)
        _check(url)
        self._url, self._timeout, self._read_only = url, timeout, read_only
        self._lock = threading.RLock()
        self._depth = 0
        self._closed = False
        with self._translated():
            self._database = self._open()

    def _open(self) -> psycopg.Connection[Any]:
        database = psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=max(2, round(self._timeout)),  # less is taken as 2
            client_encoding="utf8",
            application_name="entracte",
            **_KEEPALIVE,
        )
        try:
            database.execute(
                "SELECT set_config('search_path', %s, false), "
                "set_config('statement_timeout', %s, false), "
                "set_config('lock_timeout', %s, false), "
                # A crash of the server must not lose what was delivered: it left the queue.
                "set_config('synchronous_commit', replace(current_setting('synchronous_commit'), "
                "'off', 'on'), false), "
                "set_config('default_transaction_read_only', %s, false)",
                (
                    SCHEMA,
                    f"{STATEMENT_SECONDS}s",
                    f"{max(1, round(1000 * self._timeout))}ms",
                    "on" if self._read_only else "off",
                ),
            )
        except BaseException:
            database.close()
            raise
        return database

    @contextlib.contextmanager
    def _locked(self) -> Iterator[psycopg.Connection[Any]]:
        """Use the connection exclusively; reopen one that was lost, outside of transactions."""
        with self._lock, self._translated():
            if self._database.closed and not self._closed and not self._depth:
                self._database = self._open()
            yield self._database

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run a statement and return its rows."""
        with self._locked() as database:
            cursor = database.execute(_with_placeholders(statement), clean_parameters(parameters))
            return cursor.fetchall() if cursor.description else []

    def execute_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row of parameters, in one transaction."""
        with self.transaction(), self._translated(), self._database.cursor() as cursor:
            cursor.executemany(_with_placeholders(statement), map(clean_parameters, rows))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Run all statements of the block, or none of them."""
        with self._locked() as database:
            self._depth += 1
            try:
                with database.transaction():
                    yield
            finally:
                self._depth -= 1
                if not self._depth and database.info.transaction_status != TransactionStatus.IDLE:
                    database.close()  # it could not be rolled back, and closing does so

    @contextlib.contextmanager
    def migration(self) -> Iterator[None]:
        """Open a transaction that only one process at a time can hold, to change tables."""
        with self.transaction():
            self.execute("SELECT pg_advisory_xact_lock(?)", (_MIGRATION_LOCK,))
            self.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            yield

    def has_table(self, name: str) -> bool:
        """Return whether a table exists."""
        return self.execute("SELECT to_regclass(?)", (f"{SCHEMA}.{name}",)) != [(None,)]

    def now(self) -> float:
        """Read the server's clock."""
        ((now,),) = self.execute("SELECT CAST(extract(epoch FROM clock_timestamp()) AS float8)")
        return float(now)

    def close(self) -> None:
        """Close the connection; it cannot be used again."""
        self._closed = True
        self._database.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            misused = isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None
            if misused or (error.sqlstate or "")[:2] in _PERMANENT:
                raise
            while isinstance(error.__context__, psycopg.Error):
                error = error.__context__  # the last one is only a consequence of this one
            reason = redact_text(escape_text(" ".join(str(error).split())))
            raise Unreachable(
                f"the store {self.label} cannot be reached: {reason or type(error).__name__}"
            ) from error


def _check(url: str) -> None:
    """Refuse a URL that PostgreSQL's library would split in an unexpected way.

    The library's own messages repeat the part that it fails on, often a piece of a password.

    Raises:
        ValueError: it is not a URL, or one of its parts contains a character that separates parts.
    """
    try:
        parts = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        parts = {}
    has_password, places = redact_text(url) != url, ("host", "port", "dbname")
    hidden = not has_password or any(name.endswith("password") for name in parts)
    if not parts or not hidden or any("@" in str(parts.get(name, "")) for name in places):
        raise ValueError(
            f"a store's URL is postgresql://USER@HOST/DATABASE; got {redact_text(url)!r}, which "
            "PostgreSQL's library cannot take apart: write special characters in its parts as "
            "%40 (@), %2F (/), %25 (%), %20 (a space); better, leave the password to PGPASSWORD "
            "or ~/.pgpass"
        )


def _with_placeholders(statement: str) -> Any:
    return statement.replace("?", "%s")
