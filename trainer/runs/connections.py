"""Connections to a store's database: SQLite in a file, or PostgreSQL at a URL."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from trainer.checks.paths import to_absolute_path
from trainer.host.extras import require_extra
from trainer.host.redaction import HIDDEN, redact_text
from trainer.runs.text import clean

FILE = "store.sqlite"
"""What the store is called in the directory that holds the runs."""

ENDINGS = (".sqlite", ".sqlite3", ".db")

_LOCAL = "sqlite:///"

Row = tuple[Any, ...]


class Unreachable(ConnectionError):  # noqa: N818 (a state of affairs, as BlockingIO is)
    """The store cannot be reached now: no server, no file, or others keep it locked."""


class Connection(Protocol):
    """A database that takes statements; `?` stands for each parameter. Threads may share one.

    What a database refuses for good, a number out of range say, is raised as its driver raises it;
    all else that fails is `Unreachable`, and may be tried again.
    """

    where: str
    """Its place, without a password, for messages."""
    skipping: str
    """What a SELECT that several ask at once ends with, so that each gets rows of its own."""

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run a statement and give the rows that it returns."""

    def many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row of parameters, all of them at once or none."""

    def transaction(self) -> contextlib.AbstractContextManager[None]:
        """All that is run within happens at once, or not at all; it may be nested."""

    def migrating(self) -> contextlib.AbstractContextManager[None]:
        """Be a transaction that one process at a time is in, to make or change tables."""

    def has_table(self, name: str) -> bool:
        """Say whether a table is there."""

    def now(self) -> float:
        """Read the clock that all who use this database share, in unix seconds."""

    def close(self) -> None:
        """End the connection; it cannot be used again."""


def clean_parameters(parameters: Sequence[Any]) -> tuple[Any, ...]:
    """Give parameters that every database takes, their texts cleaned."""
    return tuple(clean(p) if isinstance(p, str) else p for p in parameters)


def resolve_store_url(store: str | os.PathLike[str]) -> str:
    """Give the URL of a store that was named by a URL, a file, or the directory of runs.

    A password that was left out where the URL was kept, `***`, is none: PostgreSQL's library takes
    it from the environment, `.pgpass` or a service file.

    >>> resolve_store_url("postgresql://host/runs"), resolve_store_url("sqlite:////runs/store.sqlite")
    ('postgresql://host/runs', 'sqlite:////runs/store.sqlite')
    >>> resolve_store_url("/runs"), resolve_store_url("/runs/all.db")
    ('sqlite:////runs/store.sqlite', 'sqlite:////runs/all.db')

    Raises:
        ValueError: the URL is of another kind.
    """
    text = os.fspath(store)
    kind, colon, rest = text.partition("://")
    if not colon:
        path = to_absolute_path(text, "a store")
        return f"{_LOCAL}{path if path.suffix in ENDINGS else path / FILE}"
    if kind in ("postgresql", "postgres"):
        place, _, query = rest.replace(f":{HIDDEN}@", "@", 1).partition("?")
        given = [one for one in query.split("&") if one and not one.endswith(f"password={HIDDEN}")]
        return f"postgresql://{'?'.join([place, '&'.join(given)] if given else [place])}"
    if text.startswith(_LOCAL) and len(text) > len(_LOCAL):
        return f"{_LOCAL}{to_absolute_path(text.removeprefix(_LOCAL), 'a store')}"
    raise ValueError(
        "a store is a directory of runs, a file *.sqlite, sqlite:///PATH or "
        f"postgresql://USER@HOST/DATABASE; got {redact_text(text)!r}"
    )


def connect(
    url: str, *, create: bool = True, patience: float = 5.0, read_only: bool = False
) -> Connection:
    """Open a connection.

    Args:
        url: of the store, see `resolve_store_url`.
        create: make an SQLite file where there is none.
        patience: seconds to wait for a server, or for a lock.
        read_only: have the database refuse every change.

    Raises:
        FileNotFoundError: there is no file, and none shall be made.
        Unreachable: there is no answer in time.
        ImportError: PostgreSQL's driver is not installed.
    """
    if url.startswith(_LOCAL):
        from trainer.runs.sqlite import SQLite

        path = Path(url.removeprefix(_LOCAL))
        return SQLite(path, create=create, patience=patience, read_only=read_only)
    with require_extra("postgres", "a store at a URL", "psycopg"):
        from trainer.runs.postgres import PostgreSQL
    return PostgreSQL(url, patience=patience, read_only=read_only)
