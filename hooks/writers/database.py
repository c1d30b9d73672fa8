"""A writer that puts a run's metrics on record in a store, beside those of other runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from numbers import Real

from hooks.writers.values import Progress, Text, Value
from trainer.runs import Run


class Database:
    """Writes to the store of a run: SQLite in the directory of the runs, or PostgreSQL.

    It keeps numbers and texts, by name, epoch and step. They are in a queue in the run's directory
    at once and delivered by a thread, so that a store that is locked or away costs nothing and
    loses nothing. A run that goes on supersedes the records beyond its epoch; one that starts
    afresh, all. How a run ended `beat` tells best; without it, one that completed its epochs is on
    record as finished, one that a hook stopped before as interrupted.

    Args:
        run: `trainer.runs.Run(directory)`, which other hooks share.

    Raises:
        TypeError: it is no `Run`.

    >>> import tempfile
    >>> from trainer.runs import Store
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     database = Database(Run(f"{folder}/digits"))
    ...     database.write(28, {"epoch": Progress(1, 1), "val/loss": 0.5})
    ...     database.close()
    ...     with Store(folder) as store:
    ...         store.records("digits"), store.run("digits").state
    ([Record(name='val/loss', epoch=1, step=28, value=0.5)], 'finished')
    """

    def __init__(self, run: Run) -> None:
        self.run = require_run("Database", run)
        self._completed = False
        self._before: BaseException | None = None  # that is handled where the run takes place

    def resume(self, step: int, epoch: int) -> None:
        """Take it that the run goes on from here (0, 0: afresh): later records are superseded."""
        self._completed = False
        self.run.resume(epoch=epoch, step=step)

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Put the numbers and texts in the queue."""
        progress = values.get("epoch")
        epoch = 0
        if isinstance(progress, Progress):
            epoch = progress.done
            self._completed = progress.done == progress.total
            self._before = sys.exc_info()[1]
        self.run.record(epoch, step, _kept(values))

    def dry_run(self, step: int, values: Mapping[str, Value]) -> None:
        """Choose what would be recorded, and record nothing."""
        _kept(values)

    def flush(self) -> None:
        """Wait until what is queued is on the disk; it need not be in the store."""
        self.run.flush()

    def close(self) -> None:
        """Deliver what waits, in some seconds, and say how the run ended if nothing else did."""
        finished = self._completed and sys.exc_info()[1] is self._before
        self._completed, self._before = False, None
        if finished and self.run.is_recording:
            self.run.end("finished")
        self.run.close()


def require_run(who: str, run: Run) -> Run:
    """Refuse what is no run.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(run, Run):
        raise TypeError(
            f"{who} takes a run on record, trainer.runs.Run(directory); got {run!r:.100}"
        )
    return run


def _kept(values: Mapping[str, Value]) -> dict[str, float | str]:
    kept: dict[str, float | str] = {}
    for name, value in values.items():
        if isinstance(value, Real):
            kept[name] = float(value)
        elif isinstance(value, Text):
            kept[name] = value.text
    return kept
