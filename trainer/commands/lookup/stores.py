"""Which store is meant, and which run in it."""

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
from trainer.runs.connection import Unreachable
from trainer.runs.directory_claim import QUEUE
from trainer.runs.rows import RunRow
from trainer.runs.store import Store

VARIABLE = "ENTRACTE_STORE"
"""Environment variable that names the store where the command line does not."""

DEFAULT = "runs"
"""Directory of the runs where nothing names a store."""

RunName = Annotated[str, tyro.conf.arg(metavar="RUN")]
"""Of a run, or the path of its directory, as help names it."""

RunNames = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[RUN ...]")]

EMPTY = 17
"""Bytes of a queue in which nothing waits."""

MANY = 10
"""Runs that a notice names."""


def resolve_store(store: str | None) -> str:
    """Give the name of the store that is meant, see `open_store`."""
    return store or os.environ.get(VARIABLE) or DEFAULT


@contextlib.contextmanager
def open_store(store: str | None, *, read_only: bool = True) -> Iterator[Store]:
    """Open the store that is meant, to look: nothing in it or beside it is changed by that.

    Where runs of this machine left records that it does not have, a notice names the command that
    delivers them: to do so here would write where the store says, whoever made it.

    Args:
        store: as it was named; where None, by the environment variable `ENTRACTE_STORE`, or else
            the directory `runs`.
        read_only: only look; else the store may be written to, and there is no notice.

    Raises:
        Refused: there is none, it does not answer, or it is of a newer version.
    """
    try:
        store_there = Store(resolve_store(store), create=False, read_only=read_only)
    except (Unreachable, OSError, ValueError, ImportError) as error:
        raise _refusal(error) from error
    with store_there:
        try:
            if read_only:
                _notice(store_there, store)
            yield store_there
        except Unreachable as error:  # in the midst
            raise _refusal(error) from error


@contextlib.contextmanager
def open_run(
    run: str, store: str | None, *, read_only: bool = True
) -> Iterator[tuple[Store, RunRow]]:
    """Open the store of a run, and find the run.

    Args:
        run: a name in the store that is meant, or the path of a run's directory, in whose parent
            its store is looked for unless another is named.
        store, read_only: as for `open_store`.

    Raises:
        Refused: there is no such run or store.
    """
    with open_store(infer_store(run, store), read_only=read_only) as found:
        yield found, find_run(found, run)


def is_path(run: str) -> bool:
    """Say whether a run is given by a path, and not by its name.

    >>> is_path("runs/digits"), is_path("."), is_path("digits")
    (True, True, False)
    """
    return os.sep in run or run in (".", "..")


def infer_store(run: str, store: str | None) -> str | None:
    """Give the store that is meant where a run is named so, see `open_run`."""
    elsewhere = is_path(run) and not store and not os.environ.get(VARIABLE)
    return os.path.dirname(os.path.realpath(parse_local_path(run, "a run"))) if elsewhere else store


def find_run(store: Store, run: str) -> RunRow:
    """Find a run by its name or its directory.

    Returns:
        Its row, with the newest epoch that is known.

    Raises:
        Refused: there is no such run; those are named that are near.
    """
    rows = store.runs()
    path = Path(os.path.expanduser(run))
    tries: tuple[Callable[[RunRow], bool], ...] = (
        lambda row: row.name == run,
        lambda row: row.directory in (os.path.abspath(path), os.path.realpath(path)),
        lambda row: path.is_dir() and row.name == path.resolve().name,  # moved, with its store
    )
    for fits in tries:
        for row in rows:
            if fits(row):
                return store.read_progress(row)
    raise CommandError(
        f"there is no run '{escape_text(run)}' in {escape_text(store.connection.label)}"
        + suggestion(run, [row.name for row in rows])
    )


def find_runs(store: Store, runs: Sequence[str]) -> list[RunRow]:
    """Find runs as `find_run` does, each once however often and variously it is named."""
    return [*{row.name: row for row in (find_run(store, run) for run in runs)}.values()]


def suggestion(name: str, known: list[str]) -> str:
    """Say how a message goes on that names what does not exist: the nearest, and all.

    >>> suggestion("digit", ["text", "digits"]), suggestion("x", [])
    (". Did you mean 'digits'? (there is: text, digits)", ' (there is none yet)')
    """
    return suggest_and_list(name, known) if known else " (there is none yet)"


def find_undelivered(store: Store) -> list[RunRow]:
    """Give the runs of this machine that have ended and left records in their queues.

    Nothing is opened: of a queue only the size is asked.
    """
    now, here = store.connection.now(), socket.gethostname()
    return [
        row
        for row in store.runs()
        if row.host == here and _waits(row.directory) and row.status(now) != "running"
    ]


def _waits(directory: str) -> bool:
    try:
        return os.lstat(os.path.join(directory, QUEUE)).st_size > EMPTY
    except (OSError, ValueError):  # a path that is none
        return False


def _notice(store: Store, given: str | None) -> None:
    """Say that records are not in the store, and what brings them there."""
    if left := find_undelivered(store):
        names = ", ".join(escape_text(row.name) for row in left[:MANY])
        more = f" and {len(left) - MANY} more" if len(left) > MANY else ""
        where = f" --store {shlex.quote(escape_text(redact_text(given)))}" if given else ""
        _warn(
            f"the last records of {names}{more} are not in the store, but in queues where these "
            f"ran: python -m trainer deliver{where}"
        )


@functools.cache
def _warn(message: str) -> None:
    """Tell it once, however often one looks."""
    print(message, file=sys.stderr)


def _refusal(error: Exception) -> CommandError:
    """Tell a user what is wrong with a store."""
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, FileNotFoundError):
        notes = (
            f" (the store is named by --store, else by the environment variable {VARIABLE}, else "
            f"it is that of {DEFAULT}/). One comes to be when a run is put on record: with "
            'run = trainer.runs.Run("runs/NAME") and log_metrics(hooks.Database(run)) among its '
            "hooks"
        )
    return CommandError(f"{escape_text(error)}{notes}")
