"""The command `deliver`: deliver the records in runs' queues to the store."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import NamedTuple

from trainer.commands.lookup.stores import (
    RunNames,
    StoreName,
    find_undelivered,
    infer_store,
    is_path,
    open_run,
    open_store,
)
from trainer.commands.terminal.calling import CommandError
from trainer.commands.terminal.output import make_console, print_json
from trainer.host.escaping import escape_text
from trainer.host.rendering.rich_tables import safe_text
from trainer.host.safe_open import UnsafeFile
from trainer.runs.delivery import deliver_queue
from trainer.runs.run_directory import QUEUE
from trainer.runs.sql.connection import Unreachable
from trainer.runs.store import Store

FAILED = 1
"""Exit status if a queue could not be delivered."""


class Outcome(NamedTuple):
    """How many lines of a run's queue were delivered, and why the rest stays, if any does."""

    run: str
    lines: int
    error: str


def deliver(runs: RunNames = (), /, *, store: StoreName = None, json: bool = False) -> int:
    """Deliver records to the store of runs that were killed, or whose store was unreachable.

    A run that resumes in its directory does so itself, and needs no command. If only the store
    names a directory, its queue is delivered only if both belong to this user, no link leads there,
    and the queue is for this store: others who can write to the store could name any file of yours.
    A run given by the path of its directory is delivered from there. Exit status: 1 if something
    stays in a queue, else 0.

    Args:
        runs: names in the store, or paths of runs' directories; by default all ended runs of this
            machine.
        json: print JSON.
    """
    outcomes = [*_deliver_runs(runs, store)]
    if json:
        print_json([outcome._asdict() for outcome in outcomes])
    else:
        console = make_console()
        for run, lines, error in outcomes:
            message = error or f"{lines:,} {'line' if lines == 1 else 'lines'} delivered"
            console.print(
                safe_text(run, "bold"), safe_text(message, "red" if error else ""), soft_wrap=True
            )
        if not outcomes:
            console.print(safe_text("nothing waits to be delivered", "dim"))
    return FAILED if any(outcome.error for outcome in outcomes) else 0


def _deliver_runs(runs: tuple[str, ...], store: str | None) -> Iterator[Outcome]:
    if not runs:
        with open_store(store, read_only=False) as opened:
            for row in find_undelivered(opened):
                yield _deliver(opened, row.name, row.directory)
    for run in runs:
        directory = os.path.realpath(os.path.expanduser(run)) if is_path(run) else ""
        if directory and os.path.lexists(os.path.join(directory, QUEUE)):
            # The store need not know the run: even its first line may be in the queue.
            with open_store(infer_store(run, store), read_only=False) as opened:
                yield _deliver(opened, os.path.basename(directory), directory, named=False)
            continue
        with open_run(run, store, read_only=False) as (opened, row):
            if row.host != socket.gethostname():
                raise CommandError(
                    f"run '{escape_text(row.name)}' left its queue on the machine "
                    f"'{escape_text(row.host)}': deliver it there"
                )
            yield _deliver(opened, row.name, row.directory)


def _deliver(store: Store, run: str, directory: str, *, named: bool = True) -> Outcome:
    """Deliver a run's queue from a directory that the store named, or else the user."""
    try:
        return Outcome(run, deliver_queue(store, directory, named=named), "")
    except Unreachable:
        raise
    except Exception as error:  # any error, so that the other runs are delivered
        message = f"stays in its queue: {error}"
        if isinstance(error, UnsafeFile) and named:
            message += (
                ". Only the store names that directory: deliver as the user who trained, or name "
                "the run by the path of its directory if you trust its content"
            )
        return Outcome(run, 0, message)
