"""The tables of a store, and the migrations from older versions."""

from __future__ import annotations

from trainer.runs.sql.connection import Connection, Row

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE runs (
            name TEXT PRIMARY KEY,
            directory TEXT NOT NULL,
            host TEXT NOT NULL,
            created DOUBLE PRECISION NOT NULL,
            config TEXT NOT NULL,
            environment TEXT NOT NULL,
            state TEXT NOT NULL,
            error TEXT NOT NULL,
            pid BIGINT NOT NULL,
            epochs BIGINT,
            epoch BIGINT NOT NULL,
            step BIGINT NOT NULL,
            beat DOUBLE PRECISION NOT NULL,
            pause DOUBLE PRECISION
        )""",
        """CREATE TABLE records (
            run TEXT NOT NULL,
            name TEXT NOT NULL,
            epoch BIGINT NOT NULL,
            step BIGINT NOT NULL,
            value DOUBLE PRECISION,
            text TEXT,
            PRIMARY KEY (run, name, epoch, step)
        )""",
        """CREATE TABLE commits (
            run TEXT NOT NULL,
            epoch BIGINT NOT NULL,
            path TEXT NOT NULL,
            bytes BIGINT NOT NULL,
            scores TEXT NOT NULL,
            checksum TEXT NOT NULL,
            written TEXT NOT NULL,
            present BIGINT NOT NULL,
            PRIMARY KEY (run, epoch)
        )""",
        """CREATE TABLE requests (
            run TEXT NOT NULL,
            epoch BIGINT NOT NULL,
            suite TEXT NOT NULL,
            checksum TEXT NOT NULL,
            state TEXT NOT NULL,
            asked DOUBLE PRECISION NOT NULL,
            tries BIGINT NOT NULL,
            worker TEXT NOT NULL,
            lease DOUBLE PRECISION NOT NULL,
            finished DOUBLE PRECISION,
            error TEXT NOT NULL,
            PRIMARY KEY (run, epoch, suite)
        )""",
        "CREATE INDEX open_requests ON requests (state, suite, asked)",
        """CREATE TABLE results (
            run TEXT NOT NULL,
            epoch BIGINT NOT NULL,
            suite TEXT NOT NULL,
            name TEXT NOT NULL,
            value DOUBLE PRECISION,
            PRIMARY KEY (run, epoch, suite, name)
        )""",
        """CREATE TABLE artifacts (
            run TEXT NOT NULL,
            path TEXT NOT NULL,
            kind TEXT NOT NULL,
            epoch BIGINT NOT NULL,
            step BIGINT NOT NULL,
            bytes BIGINT NOT NULL,
            PRIMARY KEY (run, path)
        )""",
        """CREATE TABLE workers (
            name TEXT PRIMARY KEY,
            host TEXT NOT NULL,
            pid BIGINT NOT NULL,
            beat DOUBLE PRECISION NOT NULL,
            doing TEXT NOT NULL,
            done BIGINT NOT NULL
        )""",
    ),
    (  # Paths become relative to the run's directory, which may be moved. If it was, and its files
        # were listed again, those at the old place are deleted.
        """UPDATE artifacts
            SET path = substr(path, (SELECT length(directory) + 2 FROM runs WHERE name = run))
            WHERE EXISTS (
                SELECT 1 FROM runs
                WHERE name = run AND substr(path, 1, length(directory) + 1) = directory || '/'
            )""",
        """DELETE FROM artifacts WHERE substr(path, 1, 1) = '/' AND EXISTS (
            SELECT 1 FROM artifacts AS other
            WHERE other.run = artifacts.run AND other.epoch = artifacts.epoch
                AND length(artifacts.path) > length(other.path) + 1
                AND substr(artifacts.path, length(artifacts.path) - length(other.path))
                    = '/' || other.path
        )""",
    ),
)
"""Statements that upgrade version n to version n + 1; SQLite and PostgreSQL both know them.

In `value`, NULL stands for nan, which SQLite cannot store. A record is identified by its run, name,
epoch and step, a request by its checkpoint and suite: to write one again changes nothing.
"""

VERSION = len(MIGRATIONS)

OLDEST_READABLE = 1
"""The oldest version that can be read without an upgrade, by who opens a store read-only."""


def read_version(connection: Connection) -> int:
    """Read the version of the tables; 0 if they do not exist.

    Raises:
        ValueError: they are newer than this library.
    """
    rows: list[Row] = []
    if connection.has_table("meta"):
        rows = connection.execute("SELECT value FROM meta WHERE key = 'schema'")
    found = int(rows[0][0]) if rows else 0
    if found > VERSION:
        raise ValueError(
            f"the store {connection.label} has version {found} of the tables, and this library "
            f"knows version {VERSION} at most: install a newer entracte, or give another store"
        )
    return found


def prepare_tables(connection: Connection, *, create: bool, read_only: bool) -> None:
    """Create the tables, or upgrade them; only check that they can be read, with `read_only`.

    Raises:
        FileNotFoundError: they do not exist, and `create` is False.
        ValueError: they are newer than this library, or too old to be read as they are.
    """
    found, label = read_version(connection), connection.label
    if not found and not create:
        raise FileNotFoundError(f"there is no store in {label}: nothing has written one")
    if read_only and found < OLDEST_READABLE:
        raise ValueError(
            f"the store {label} has version {found} of the tables, and reading changes nothing: "
            f"bring it up to date, entracte deliver --store {label}"
        )
    if read_only or found == VERSION:
        return
    with connection.migration():
        connection.execute(
            "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
        )
        connection.execute("INSERT INTO meta VALUES ('schema', '0') ON CONFLICT (key) DO NOTHING")
        found = read_version(connection)  # another process may have upgraded them meanwhile
        for number, statements in enumerate(MIGRATIONS[found:], found + 1):
            for statement in statements:
                connection.execute(statement)
            connection.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(number),))
