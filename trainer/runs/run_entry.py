"""Find the entry of a run in a store, whatever its directory was called before."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.runs.rows import RunRow
from trainer.runs.run_directory import QUEUE, describe_checkpoint, list_checkpoint_epochs
from trainer.runs.sql.connection import Unreachable
from trainer.runs.store import Store
from trainer.runs.text import clean

log = logging.getLogger("entracte")


def find_run_name(url: str, directory: Path, name: str, *, named: bool) -> str:
    """Return the name under which a run is recorded; refuse what could not be delivered.

    Unless the user chose the name (`named`), one already recorded for the directory wins. The
    directory is an absolute path without links.

    Raises:
        ValueError: a run of this name is recorded from another directory; or as `Store`.
        Unreachable: the store does not answer, and this directory has never been recorded.
    """
    queued = (directory / QUEUE).exists()
    try:
        with Store(url) as store:
            rows = store.runs()
            name = _find_entry(store, rows, directory, name, named=named)
            for row in rows:
                if row.name == name and _is_another(store, row, directory, queued=queued):
                    raise ValueError(
                        f"a run named {name!r} is recorded in {store.connection.label}, "
                        f"from {row.directory!r}, and this one is in {str(directory)!r}: "
                        "give this one another name, Run(..., name=...)"
                    )
                if row.name == name and not queued:
                    log.warning(
                        "run %r is recorded in %s with %d epochs, and nothing of it is in %s: "
                        "what is trained there replaces it; Run(..., name=...) keeps it",
                        *(name, store.connection.label, row.epoch, directory),
                    )
    except Unreachable as error:
        if not queued:
            error.add_note(
                f"run {name!r} has never been recorded: start the store, or name another "
                "(a recorded run queues what it records on the disk, and trains on)"
            )
            raise
        log.warning("%s: what this run records is queued in %s", error, directory)
    return name


def _find_entry(
    store: Store, rows: Sequence[RunRow], directory: Path, name: str, *, named: bool
) -> str:
    """Find the one entry of a run, through whatever links its directory was named."""
    here = [row for row in rows if _is_local(store, row)]
    names = {row.name for row in here if os.path.realpath(row.directory) == str(directory)}
    if names and name not in names:
        if not named:
            log.info("%s is recorded as run %r", directory, min(names))
            return min(names)
        log.warning(
            "%s is recorded as run %r too: leave name= out to continue that entry",
            *(directory, min(names)),
        )
    new = not names and not named and all(row.name != name for row in rows)
    if new and (before := _find_moved(store, here, directory)):
        log.warning(
            "%s holds what run %r recorded in %s, which no longer exists: Run(..., name=%r) "
            "continues its entry, and this starts another, %r",
            *(directory, before.name, before.directory, before.name, name),
        )
    return name


def _find_moved(store: Store, here: Sequence[RunRow], directory: Path) -> RunRow | None:
    """Find the run whose newest checkpoint lies in this directory, and whose own one is gone."""
    with contextlib.suppress(DamagedCheckpoint):
        for epoch in list_checkpoint_epochs(directory)[-1:]:
            names = store.find_runs(epoch, describe_checkpoint(directory, epoch).checksum)
            gone = (row for row in here if not os.path.lexists(row.directory))
            return next((row for row in gone if row.name in names), None)
    return None


def _is_local(store: Store, row: RunRow) -> bool:
    """Return whether the directory of a recorded run is on this machine."""
    return store.url.startswith("sqlite:") or row.host == socket.gethostname()


def _is_another(store: Store, row: RunRow, directory: Path, *, queued: bool) -> bool:
    """Return whether a recorded run is another one of this name, and not this one moved."""
    if row.directory == clean(os.fspath(directory)):
        return row.host != socket.gethostname() and not queued
    if not _is_local(store, row):
        return True
    recorded = os.path.realpath(row.directory)
    return os.path.exists(recorded) and recorded != os.path.realpath(directory)
