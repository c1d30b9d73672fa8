"""Connect to a store by its URL: SQLite in a file, or PostgreSQL on a server."""

from __future__ import annotations

import os
from pathlib import Path

from trainer.checks.paths import to_absolute_path
from trainer.host.extras import require_extra
from trainer.host.redaction import HIDDEN, redact_text
from trainer.runs.sql.connection import Connection
from trainer.runs.sql.sqlite import SQLite

FILE = "store.sqlite"
"""Name of the store in the directory that holds the runs."""

ENDINGS = (".sqlite", ".sqlite3", ".db")

_LOCAL = "sqlite:///"


def resolve_store_url(store: str | os.PathLike[str]) -> str:
    """Return the URL of a store that was named by a URL, a file, or the directory of runs.

    A password that was redacted where the URL was saved, `***`, is left out: PostgreSQL's library
    reads it from the environment, `.pgpass` or a service file.

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
    url: str, *, create: bool = True, timeout: float = 5.0, read_only: bool = False
) -> Connection:
    """Open a connection.

    Args:
        url: of the store, see `resolve_store_url`.
        create: create an SQLite file, and its folder, where they do not exist.
        timeout: seconds to wait for a server, or for a lock.
        read_only: let the database refuse every change.

    Raises:
        FileNotFoundError: the file does not exist, and `create` is False.
        Unreachable: the database does not answer in time, stays locked, or is not that of a store.
        ValueError: PostgreSQL's library cannot take the URL apart.
        ImportError: PostgreSQL's driver is not installed.
    """
    if url.startswith(_LOCAL):
        path = Path(url.removeprefix(_LOCAL))
        return SQLite(path, create=create, timeout=timeout, read_only=read_only)
    with require_extra("postgres", "a store at a URL", "psycopg"):
        from trainer.runs.sql.postgres import PostgreSQL
    return PostgreSQL(url, timeout=timeout, read_only=read_only)
