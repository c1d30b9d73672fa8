"""What a store needs of a database, whether SQLite or PostgreSQL, and statements for both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from trainer.runs.text import clean

Row = tuple[Any, ...]


class Unreachable(ConnectionError):  # noqa: N818 (a state of affairs, as BlockingIO is)
    """The store cannot be reached now: no server, no file, or other processes keep it locked."""


class Connection(Protocol):
    """A database that runs statements; `?` stands for each parameter. Threads may share one.

    An error that a retry cannot mend, such as a number out of range, keeps the type that the driver
    raised. Every other failure is `Unreachable`, and may be retried.
    """

    label: str
    """Path or URL for messages, without a password."""
    skip_locked: str
    """Suffix of a SELECT that several processes run at once, so that each gets its own rows."""

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run a statement and return its rows."""

    def execute_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row of parameters, in one transaction."""

    def transaction(self) -> contextlib.AbstractContextManager[None]:
        """Run all statements of the block, or none of them; transactions may be nested."""

    def migration(self) -> contextlib.AbstractContextManager[None]:
        """Open a transaction that only one process at a time can hold, to change tables."""

    def has_table(self, name: str) -> bool:
        """Return whether a table exists."""

    def now(self) -> float:
        """Read the clock that all users of this database share, in unix seconds."""

    def close(self) -> None:
        """Close the connection; it cannot be used again."""


def clean_parameters(parameters: Sequence[Any]) -> tuple[Any, ...]:
    """Clean the texts among parameters, so that every database accepts them."""
    return tuple(clean(p) if isinstance(p, str) else p for p in parameters)


def placeholders(values: Sequence[object]) -> str:
    """Return a `?` for each value.

    >>> placeholders("abc")
    '?, ?, ?'
    """
    return ", ".join("?" * len(values))


def upsert(
    table: str, columns: Sequence[str], key: Sequence[str], update: Sequence[str] | None = None
) -> str:
    """Build a statement that inserts a row, or updates the row that has the same key.

    The parameters are for `columns`, in order. None for `update` updates all but the key.

    >>> print(upsert("t", ("run", "n"), ("run",)))
    INSERT INTO t (run, n) VALUES (?, ?) ON CONFLICT (run) DO UPDATE SET n = excluded.n
    """
    if update is None:
        update = [column for column in columns if column not in key]
    changes = ", ".join(f"{column} = excluded.{column}" for column in update)
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({placeholders(columns)}) "
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"
    )
