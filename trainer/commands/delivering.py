"""The command `deliver`: what runs left in their queues reaches the store."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import NamedTuple

from trainer.commands.calling import Refused
from trainer.commands.showing import print_json, screen, text
from trainer.commands.stores import RunNames, is_path, located, opened, undelivered
from trainer.escaping import shown
from trainer.runs.connections import Unreachable
from trainer.runs.rows import RunRow
from trainer.runs.run import deliver_left
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
        console = screen()
        for run, lines, error in outcomes:
            told = error or f"{lines:,} {'line' if lines == 1 else 'lines'} delivered"
            console.print(text(run, "bold"), text(told, "red" if error else ""), soft_wrap=True)
        if not outcomes:
            console.print(text("nothing waits to be delivered", "dim"))
    return FAILED if any(outcome.error for outcome in outcomes) else 0


def _all(store: str | None) -> Iterator[Outcome]:
    with opened(store, read_only=False) as there:
        for row in undelivered(there):
            yield _delivered(there, row)


def _named(runs: tuple[str, ...], store: str | None) -> Iterator[Outcome]:
    for run in runs:
        with located(run, store, read_only=False) as (there, row):
            if is_path(run) and os.path.isdir(run):
                yield _delivered(there, row, os.path.realpath(run))
            elif row.host == socket.gethostname():
                yield _delivered(there, row)
            else:
                raise Refused(
                    f"run '{shown(row.name)}' left its queue on the machine '{shown(row.host)}': "
                    "deliver it there"
                )


def _delivered(store: Store, row: RunRow, directory: str | None = None) -> Outcome:
    """Deliver a run's queue, from a directory that the user named, or else the store."""
    try:
        named = directory is None
        return Outcome(row.name, deliver_left(store, directory or row.directory, named=named), "")
    except Unreachable:
        raise
    except Exception as error:  # whatever it is, the other runs' come next
        return Outcome(row.name, 0, f"stays in its queue: {error}")
