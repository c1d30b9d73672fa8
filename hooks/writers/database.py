"""A writer that records a run's metrics in a store, beside those of other runs."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

from hooks.writers.values import Progress, Text, Value
from trainer.runs import Run


class Database:
    """Writes to the store of a run: SQLite in the directory of the runs, or PostgreSQL.

    It keeps numbers and texts, by name, epoch and step. They are put in a queue in the run's
    directory and delivered by a thread: a store that is locked or away costs no time and loses
    nothing. A run that resumes replaces the records beyond its epoch, one that starts fresh all.
    Without the hook `heartbeat`, a run that completed its epochs is recorded as finished, and one
    that a hook stopped earlier as interrupted.

    Args:
        run: `trainer.runs.Run(directory)`, which other hooks share.

    Raises:
        TypeError: it is not a `Run`.

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

    def resume(self, step: int, epoch: int) -> None:
        """Record that the run resumes here (0, 0: starts fresh); later records are deleted."""
        self._completed = False
        self.run.resume(epoch=epoch, step=step)

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Put the numbers and texts in the queue."""
        progress = values.get("epoch")
        epoch = 0
        if isinstance(progress, Progress):
            epoch = progress.done
            self._completed = progress.done == progress.total
        self.run.record(epoch, step, _select_values(values))

    def dry_run(self, step: int, values: Mapping[str, Value]) -> None:
        """Select what would be recorded, and record nothing."""
        _select_values(values)

    def flush(self) -> None:
        """Wait until what is queued is on the disk; it need not be in the store yet."""
        self.run.flush()

    def close(self) -> None:
        """Deliver what waits, within some seconds; record how the run ended if nothing else did."""
        completed, self._completed = self._completed, False
        self.run.close(completed=completed)


def require_run(who: str, run: Run) -> Run:
    """Return an argument that must be a run; raise TypeError if it is not."""
    if not isinstance(run, Run):
        raise TypeError(
            f"{who} takes a recorded run, trainer.runs.Run(directory); got {run!r:.100}"
        )
    return run


def _select_values(values: Mapping[str, Value]) -> dict[str, float | str]:
    return {
        name: value.text if isinstance(value, Text) else float(value)
        for name, value in values.items()
        if isinstance(value, Real | Text)
    }
