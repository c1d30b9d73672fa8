"""Past runs: what a store has of a run, epoch by epoch, as its hooks saw it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from trainer.checks.paths import to_absolute_path
from trainer.checks.suggestions import suggest_and_list
from trainer.host.escaping import escape_text
from trainer.runs import CheckpointRow, Record, RunRow, Store


class PastEpoch(NamedTuple):
    """What is on record of an epoch."""

    epoch: int
    """How many were completed; 0 is what was measured before training."""
    step: int
    metrics: dict[str, float]
    """The numbers, by name; texts are left out."""


class PastRun(NamedTuple):
    """What is on record of a run."""

    row: RunRow
    epochs: list[PastEpoch]
    """Ascending."""
    commits: list[CheckpointRow]
    """By epoch, those that are still there."""


def load_past_run(
    run: str | os.PathLike[str], *, store: str | os.PathLike[str] | Store | None = None
) -> PastRun:
    """Read what a store has of a run.

    Args:
        run: its directory, `runs/digits`, or its name.
        store: the directory that holds the runs, a file, a URL, or one that is open; where None
            the SQLite store in the directory that holds that of the run.

    Raises:
        FileNotFoundError: there is no store.
        KeyError: it has no such run; those that it has are named.
        Unreachable: it does not answer.
    """
    if isinstance(store, Store):
        return read_past_run(store, find_run(store, run))
    where = to_absolute_path(run, "past_run").parent if store is None else store
    with Store(where, read_only=True) as opened:
        return load_past_run(run, store=opened)


def read_past_run(store: Store, row: RunRow) -> PastRun:
    """Read what is on record of a run that was found.

    Raises:
        Unreachable: the store does not answer.
    """
    records, commits = store.records(row.name), store.checkpoints(row.name, present=True)
    return PastRun(row, group_by_epoch(records), commits)


def find_run(store: Store, run: str | os.PathLike[str]) -> RunRow:
    """Find a run by its directory, or else by its name, which is that of the directory unless told.

    Raises:
        KeyError: the store has no such run; those that it has are named.
    """
    rows = store.runs()
    path = os.path.expanduser(run)
    directories, name = (os.path.abspath(path), os.path.realpath(path)), Path(run).name
    for row in rows:
        if row.directory in directories:
            return row
    for row in rows:
        if row.name == name:
            return row
    known = suggest_and_list(run, [escape_text(row.name) for row in rows])
    raise KeyError(f"no run {escape_text(run)!r} in {store.connection.label}{known}")


def group_by_epoch(records: Iterable[Record]) -> list[PastEpoch]:
    """Put together what was recorded when each epoch was completed.

    What was recorded in the midst of an epoch has the number of the one before and a later step,
    and is left out, as texts are.

    Args:
        records: in the order of epochs and steps.

    >>> group_by_epoch([Record("loss", 1, 28, 0.5), Record("said", 1, 28, "Hi"), Record("gap", 1,
    ...     40, 1)])
    [PastEpoch(epoch=1, step=28, metrics={'loss': 0.5})]
    """
    found: dict[int, PastEpoch] = {}
    for name, epoch, step, value in records:
        if isinstance(value, str):
            continue
        past = found.get(epoch)
        if past is None:
            past = found[epoch] = PastEpoch(epoch, step, {})
        if step == past.step:
            past.metrics[name] = float(value)
    return list(found.values())
