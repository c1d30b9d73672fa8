"""Which store is meant, and which run in it."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from trainer.commands.calling import Refused, placed
from trainer.names import among
from trainer.runs.connections import Unreachable
from trainer.runs.rows import RunRow
from trainer.runs.run import QUEUE, deliver_left
from trainer.runs.store import Store
from trainer.runs.text import shown

VARIABLE = "ENTRACTE_STORE"
"""Environment variable that names the store where the command line does not."""

DEFAULT = "runs"
"""Directory of the runs where nothing names a store."""

RunName = Annotated[str, tyro.conf.arg(metavar="RUN")]
"""Of a run, or the path of its directory, as help names it."""

RunNames = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[RUN ...]")]

EMPTY = 17
"""Bytes of a queue in which nothing waits; it is not opened, for another user may not be let to."""


def named(store: str | None) -> str:
    """Give the name of the store that is meant, see `opened`."""
    return store or os.environ.get(VARIABLE) or DEFAULT


@contextlib.contextmanager
def opened(store: str | None) -> Iterator[Store]:
    """Open the store that is meant, to read; what dead runs left in their queues comes first.

    Args:
        store: as it was named; where None, by the environment variable `ENTRACTE_STORE`, or else
            the directory `runs`.

    Raises:
        Refused: there is none, it does not answer, or it is of a newer version.
    """
    try:
        store_there = Store(named(store), create=False)
    except (Unreachable, OSError, ValueError, ImportError) as error:
        raise _refusal(error) from error
    with store_there:
        try:
            _deliver(store_there)
            yield store_there
        except Unreachable as error:  # in the midst
            raise _refusal(error) from error


@contextlib.contextmanager
def located(run: str, store: str | None) -> Iterator[tuple[Store, RunRow]]:
    """Open the store of a run, and find the run.

    Args:
        run: a name in the store that is meant, or the path of a run's directory, in whose parent
            its store is looked for unless another is named.
        store: as for `opened`.

    Raises:
        Refused: there is no such run or store.
    """
    with opened(store_of(run, store)) as found:
        yield found, find(found, run)


def store_of(run: str, store: str | None) -> str | None:
    """Give the store that is meant where a run is named so, see `located`."""
    is_path = os.sep in run or run in (".", "..")
    elsewhere = is_path and not store and not os.environ.get(VARIABLE)
    return os.path.dirname(os.path.realpath(placed(run, "a run"))) if elsewhere else store


def find(store: Store, run: str) -> RunRow:
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
                return store.reached(row)
    raise Refused(
        f"there is no run '{shown(run)}' in {shown(store.connection.where)}"
        + suggestion(run, [row.name for row in rows])
    )


def find_all(store: Store, runs: Sequence[str]) -> list[RunRow]:
    """Find runs as `find` does, each once however often and variously it is named."""
    return [*{row.name: row for row in (find(store, run) for run in runs)}.values()]


def suggestion(name: str, known: list[str]) -> str:
    """Say how a message goes on that names what does not exist: the nearest, and all.

    >>> suggestion("digit", ["text", "digits"]), suggestion("x", [])
    (". Did you mean 'digits'? (there is: text, digits)", ' (there is none yet)')
    """
    return among(name, [*map(shown, known)]) if known else " (there is none yet)"


def _deliver(store: Store) -> None:
    """Deliver what runs of this machine left; where that fails, say so and go on."""
    for row in store.runs():
        if row.host != socket.gethostname() or not _waiting(Path(row.directory, QUEUE)):
            continue
        try:
            deliver_left(store, row.directory)
        except Exception as error:  # whatever it is, what is in the store can be shown
            _warn(f"what run '{shown(row.name)}' left in its queue stays there: {shown(error)}")


@functools.cache
def _warn(message: str) -> None:
    """Tell it once, however often one looks."""
    print(message, file=sys.stderr)


def _waiting(queue: Path) -> bool:
    try:
        return queue.stat().st_size > EMPTY
    except OSError:
        return False


def _refusal(error: Exception) -> Refused:
    """Tell a user what is wrong with a store."""
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, FileNotFoundError):
        notes = (
            f" (the store is named by --store, else by the environment variable {VARIABLE}, else "
            f"it is that of {DEFAULT}/). One comes to be when a run is put on record: with "
            'run = trainer.runs.Run("runs/NAME") and log_metrics(hooks.Database(run)) among its '
            "hooks"
        )
    return Refused(f"{shown(error)}{notes}")
