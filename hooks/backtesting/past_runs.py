"""Load a recorded run from a store, epoch by epoch, as its hooks saw it."""

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
    """The recorded metrics of an epoch."""

    epoch: int
    """Number of completed epochs; 0 is before training."""
    step: int
    metrics: dict[str, float]
    """Numbers by name, without texts."""


class PastRun(NamedTuple):
    """A recorded run."""

    row: RunRow
    epochs: list[PastEpoch]
    """Ascending."""
    checkpoints: list[CheckpointRow]
    """Those that still exist, by epoch."""


def load_past_run(
    run: str | os.PathLike[str], *, store: str | os.PathLike[str] | Store | None = None
) -> PastRun:
    """Load a recorded run from a store.

    Args:
        run: its directory, `runs/digits`, or its name.
        store: the directory of the runs, a file, a URL, or an open store; if None, the SQLite store
            in the parent directory of the run.

    Raises:
        FileNotFoundError: there is no store.
        KeyError, Unreachable: as `find_run` and `read_past_run`.
    """
    if isinstance(store, Store):
        return read_past_run(store, find_run(store, run))
    where = to_absolute_path(run, "load_past_run").parent if store is None else store
    with Store(where, read_only=True) as opened:
        return load_past_run(run, store=opened)


def read_past_run(store: Store, row: RunRow) -> PastRun:
    """Read the records of a run, given its row; raise Unreachable if the store does not respond."""
    records, checkpoints = store.records(row.name), store.checkpoints(row.name, present=True)
    return PastRun(row, group_by_epoch(records), checkpoints)


def find_run(store: Store, run: str | os.PathLike[str]) -> RunRow:
    """Find a run by its directory, or else by its name, which defaults to the directory's.

    Raises:
        KeyError: the store has no such run; the message lists its runs.
    """
    rows = store.runs()
    path = os.path.expanduser(run)
    directories = os.path.abspath(path), os.path.realpath(path)
    found = [row for row in rows if row.directory in directories]
    if found := found or [row for row in rows if row.name == Path(run).name]:
        return found[0]
    known = suggest_and_list(run, [escape_text(row.name) for row in rows])
    raise KeyError(f"no run {escape_text(run)!r} in {store.connection.label}{known}")


def group_by_epoch(records: Iterable[Record]) -> list[PastEpoch]:
    """Collect the numbers that were recorded when each epoch was completed.

    What was recorded within an epoch has the number of the previous epoch and a later step; it is
    left out, and so are texts. The records must be in the order of epochs and steps.

    >>> said = Record("said", 1, 28, "Hi")
    >>> group_by_epoch([Record("loss", 1, 28, 0.5), said, Record("gap", 1, 40, 1)])
    [PastEpoch(epoch=1, step=28, metrics={'loss': 0.5})]
    """
    epochs: dict[int, PastEpoch] = {}
    for name, epoch, step, value in records:
        if not isinstance(value, str):
            past = epochs.setdefault(epoch, PastEpoch(epoch, step, {}))
            if step == past.step:
                past.metrics[name] = float(value)
    return list(epochs.values())
