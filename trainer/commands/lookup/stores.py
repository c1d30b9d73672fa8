"""Find the store, and a run in it, that a command line names."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from trainer.checks.suggestions import suggest_and_list
from trainer.commands.terminal.calling import CommandError, parse_local_path
from trainer.host.escaping import escape_text
from trainer.host.redaction import redact_text
from trainer.runs.rows import RunRow
from trainer.runs.run_directory import QUEUE
from trainer.runs.sql.connection import Unreachable
from trainer.runs.store import Store

VARIABLE = "ENTRACTE_STORE"
"""Environment variable that names the store if the command line does not."""

DEFAULT = "runs"
"""Directory of the runs if nothing names a store."""

RunName = Annotated[str, tyro.conf.arg(metavar="RUN")]
"""Name of a run, or path of its directory."""

RunNames = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[RUN ...]")]

StoreName = Annotated[
    str | None,
    tyro.conf.arg(
        help="directory of the runs, file *.sqlite, or postgresql://USER@HOST/DATABASE; by default "
        f"${VARIABLE}, or {DEFAULT}/."
    ),
]

EMPTY = 17
"""Bytes of an empty queue."""

MANY = 10
"""Runs that a notice names."""


def resolve_store(store: str | None) -> str:
    """Return the name of the store to open, see `open_store`."""
    return store or os.environ.get(VARIABLE) or DEFAULT


@contextlib.contextmanager
def open_store(store: str | None, *, read_only: bool = True) -> Iterator[Store]:
    """Open a store to read it: nothing in it or beside it changes.

    If runs of this machine have records that are not in the store, a notice names the command that
    delivers them. To deliver them here would write to paths from the store, whoever wrote it.

    None for `store` takes the environment variable `ENTRACTE_STORE`, or else the directory `runs`.
    Without `read_only` it is open for writing, and there is no notice.

    Raises:
        CommandError: there is no store, it does not respond, or it has a newer version.
    """
    try:
        opened = Store(resolve_store(store), create=False, read_only=read_only)
    except (Unreachable, OSError, ValueError, ImportError) as error:
        raise _to_command_error(error) from error
    with opened:
        try:
            if read_only:
                _warn_of_undelivered(opened, store)
            yield opened
        except Unreachable as error:  # while it is open
            raise _to_command_error(error) from error


@contextlib.contextmanager
def open_run(
    run: str, store: str | None, *, read_only: bool = True
) -> Iterator[tuple[Store, RunRow]]:
    """Open the store of a run as `open_store` does, and find the run.

    The run is a name in the store, or the path of a run's directory; its store is then looked for
    in the parent directory, unless another is named.

    Raises:
        CommandError: there is no such run or store.
    """
    with open_store(infer_store(run, store), read_only=read_only) as opened:
        yield opened, find_run(opened, run)


def is_path(run: str) -> bool:
    """Return whether a run is given by a path instead of a name.

    >>> is_path("runs/digits"), is_path("."), is_path("digits")
    (True, True, False)
    """
    return os.sep in run or run in (".", "..")


def infer_store(run: str, store: str | None) -> str | None:
    """Return the store to open for a run, see `open_run`."""
    if is_path(run) and not store and not os.environ.get(VARIABLE):
        return os.path.dirname(os.path.realpath(parse_local_path(run, "a run")))
    return store


def find_run(store: Store, run: str) -> RunRow:
    """Find a run by its name or its directory; its row has the newest known epoch.

    Raises:
        CommandError: there is no such run; the message suggests similar names.
    """
    rows = store.runs()
    path = Path(os.path.expanduser(run))
    tries: tuple[Callable[[RunRow], bool], ...] = (
        lambda row: row.name == run,
        lambda row: row.directory in (os.path.abspath(path), os.path.realpath(path)),
        lambda row: path.is_dir() and row.name == path.resolve().name,  # moved with its store
    )
    for fits in tries:
        for row in rows:
            if fits(row):
                return store.read_progress(row)
    raise CommandError(
        f"there is no run '{escape_text(run)}' in {escape_text(store.connection.label)}"
        + suggest(run, [row.name for row in rows])
    )


def find_runs(store: Store, runs: Sequence[str]) -> list[RunRow]:
    """Find runs as `find_run` does, each once even if it is named repeatedly."""
    return [*{row.name: row for row in (find_run(store, run) for run in runs)}.values()]


def suggest(name: str, known: list[str]) -> str:
    """Return the end of a message about an unknown name: the most similar one, and all.

    >>> suggest("digit", ["text", "digits"]), suggest("x", [])
    (". Did you mean 'digits'? (there is: text, digits)", ' (there is none yet)')
    """
    return suggest_and_list(name, known) if known else " (there is none yet)"


def find_undelivered(store: Store) -> list[RunRow]:
    """Find the ended runs of this machine with records in their queues, by the queues' sizes."""
    now, here = store.connection.now(), socket.gethostname()
    return [
        row
        for row in store.runs()
        if row.host == here and _has_queue(row.directory) and row.status(now) != "running"
    ]


def _has_queue(directory: str) -> bool:
    try:
        return os.lstat(os.path.join(directory, QUEUE)).st_size > EMPTY
    except (OSError, ValueError):  # no valid path
        return False


def _warn_of_undelivered(store: Store, given: str | None) -> None:
    """Warn that records are not in the store, and name the command that delivers them."""
    if left := find_undelivered(store):
        names = ", ".join(escape_text(row.name) for row in left[:MANY])
        more = f" and {len(left) - MANY} more" if len(left) > MANY else ""
        where = f" --store {shlex.quote(escape_text(redact_text(given)))}" if given else ""
        _warn(
            f"the last records of {names}{more} are not in the store, but in queues in the runs' "
            f"directories: entracte deliver{where}"
        )


@functools.cache
def _warn(message: str) -> None:
    """Print a message once per process."""
    print(message, file=sys.stderr)


def _to_command_error(error: Exception) -> CommandError:
    """Explain to the user what is wrong with a store."""
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, FileNotFoundError):
        notes = (
            f" (the store is named by --store, else by the environment variable {VARIABLE}, else "
            f"it is that of {DEFAULT}/). Recording a run creates one: with "
            'run = trainer.runs.Run("runs/NAME") and log_metrics(hooks.Database(run)) among its '
            "hooks"
        )
    return CommandError(f"{escape_text(error)}{notes}")
