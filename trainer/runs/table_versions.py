"""The tables of a store, and how an older store becomes one of today."""

from __future__ import annotations

from trainer.runs.connections import Connection, Row

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
    (  # A file's path is relative to the run's directory, which may be moved; where it was, and its
        # files were listed anew, those at the old place go.
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
"""What makes version n + 1 of version n: statements that SQLite and PostgreSQL both know.

In `value`, NULL is a number that is none (nan), for SQLite keeps no such thing. A record is of its
run, name, epoch and step, a request of its commit and suite: to write one again changes nothing.
"""

VERSION = len(MIGRATIONS)

READABLE = 1
"""The oldest version whose tables are read as today's are: who only looks changes none."""


def version(connection: Connection, *, there: bool = False) -> int:
    """Read the version of the tables; 0 where there are none.

    Raises:
        FileNotFoundError: there are none, and `there` says that there must be.
    """
    rows: list[Row] = []
    if connection.has_table("meta"):
        rows = connection.execute("SELECT value FROM meta WHERE key = 'schema'")
    found = int(rows[0][0]) if rows else 0
    if there and not found:
        raise FileNotFoundError(f"there is no store in {connection.where}: nothing has written one")
    return found


def migrate(connection: Connection, *, create: bool) -> None:
    """Make the tables, or bring them up to date.

    Raises:
        FileNotFoundError: there are none, and none shall be made.
        ValueError: they are newer than this library.
    """
    where = connection.where
    if not migrations(version(connection, there=not create), where):
        return
    with connection.migrating():
        connection.execute(
            "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
        )
        connection.execute("INSERT INTO meta VALUES ('schema', '0') ON CONFLICT (key) DO NOTHING")
        for number, statement in migrations(version(connection), where):
            connection.execute(statement)
            connection.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(number),))


def migrations(found: int, where: str) -> list[tuple[int, str]]:
    """Give the statements that bring a store up to date, each with the version it belongs to.

    Raises:
        ValueError: the store is newer than this library.

    >>> migrations(VERSION, "here")
    []
    """
    check_known(found, where)
    return [
        (number, statement)
        for number, statements in enumerate(MIGRATIONS[found:], found + 1)
        for statement in statements
    ]


def check_known(found: int, where: str, *, to_read: bool = False) -> None:
    """Check that this library knows a version of the tables.

    Args:
        found: the version.
        where: names the store.
        to_read: whether they stay as they are, and an old version must be one that can be read.

    Raises:
        ValueError: it does not.

    >>> check_known(VERSION + 1, "here")
    Traceback (most recent call last):
    ValueError: the store here has version 3 of the tables, and this library knows version 2 at ...
    """
    if found > VERSION:
        raise ValueError(
            f"the store {where} has version {found} of the tables, and this library knows "
            f"version {VERSION} at most: install a newer entracte, or give another store"
        )
    if to_read and found < READABLE:
        raise ValueError(
            f"the store {where} has version {found} of the tables, and what only looks changes "
            f"nothing: bring it up to date, python -m trainer deliver --store {where}"
        )
