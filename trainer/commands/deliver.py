"""The command `deliver`: what runs left in their queues reaches the store."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import NamedTuple

from trainer.commands.lookup.stores import (
    RunNames,
    find_undelivered,
    infer_store,
    is_path,
    open_run,
    open_store,
)
from trainer.commands.terminal.calling import CommandError
from trainer.commands.terminal.output import make_console, print_json
from trainer.host.escaping import escape_text
from trainer.host.rich_tables import safe_text
from trainer.host.safe_open import UnsafeFile
from trainer.runs.connection import Unreachable
from trainer.runs.delivery import deliver_queue
from trainer.runs.directory_claim import QUEUE
from trainer.runs.store import Store

FAILED = 1
"""Exit status where a queue could not be delivered."""


class Outcome(NamedTuple):
    """What became of a run's queue."""

    run: str
    lines: int
    """That are in the store now."""
    error: str
    """Why the rest stays where it is; empty where there is none."""


def deliver(runs: RunNames = (), /, *, store: str | None = None, json: bool = False) -> int:
    """Deliver to the store what runs recorded that were killed, or whose store was away.

    A run that goes on in its directory does so itself, and needs no command. Nothing is delivered
    from a directory that the store names unless it and the queue belong to this user, no link leads
    there, and what waits is for this store: a store can be written to by others, who would name any
    file of yours. A run given by the path of its directory is delivered from there. Exit status: 1
    where something stays in a queue, else 0.

    Args:
        runs: names in the store, or paths of runs' directories; all of this machine that have ended
            if none are given.
        store: directory of the runs, file *.sqlite, or postgresql://USER@HOST/DATABASE; else
            $ENTRACTE_STORE, else runs/.
        json: print JSON.
    """
    outcomes = [*_named(runs, store)] if runs else [*_all(store)]
    if json:
        print_json([outcome._asdict() for outcome in outcomes])
    else:
        console = make_console()
        for run, lines, error in outcomes:
            told = error or f"{lines:,} {'line' if lines == 1 else 'lines'} delivered"
            console.print(
                safe_text(run, "bold"), safe_text(told, "red" if error else ""), soft_wrap=True
            )
        if not outcomes:
            console.print(safe_text("nothing waits to be delivered", "dim"))
    return FAILED if any(outcome.error for outcome in outcomes) else 0


def _all(store: str | None) -> Iterator[Outcome]:
    with open_store(store, read_only=False) as there:
        for row in find_undelivered(there):
            yield _delivered(there, row.name, row.directory)


def _named(runs: tuple[str, ...], store: str | None) -> Iterator[Outcome]:
    for run in runs:
        directory = os.path.realpath(os.path.expanduser(run)) if is_path(run) else ""
        if directory and os.path.lexists(os.path.join(directory, QUEUE)):
            # Whether or not the store knows the run: its first line may wait there.
            with open_store(infer_store(run, store), read_only=False) as there:
                yield _delivered(there, os.path.basename(directory), directory, named=False)
            continue
        with open_run(run, store, read_only=False) as (there, row):
            if row.host == socket.gethostname():
                yield _delivered(there, row.name, row.directory)
            else:
                raise CommandError(
                    f"run '{escape_text(row.name)}' left its queue on the machine "
                    f"'{escape_text(row.host)}': "
                    "deliver it there"
                )


def _delivered(store: Store, run: str, directory: str, *, named: bool = True) -> Outcome:
    """Deliver a run's queue, from a directory that the store named, or else the user."""
    try:
        return Outcome(run, deliver_queue(store, directory, named=named), "")
    except Unreachable:
        raise
    except Exception as error:  # whatever it is, the other runs' come next
        told = f"stays in its queue: {error}"
        if isinstance(error, UnsafeFile) and named:
            told += (
                ". The store alone names that directory: deliver as the user who trained, or name "
                "the run by the path of its directory if you trust what lies there"
            )
        return Outcome(run, 0, told)
