"""SQL statements that SQLite and PostgreSQL both understand."""

from __future__ import annotations

from collections.abc import Sequence


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

    Args:
        table: its name.
        columns: those that the parameters are for, in order.
        key: columns of the primary key.
        update: columns to update in an existing row; None updates all but the key.

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
