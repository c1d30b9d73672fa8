"""What a writer is: where `log_metrics` and `record` write to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from hooks.writers.values import Progress, Value

log = logging.getLogger("entracte")


@runtime_checkable
class Writer(Protocol):
    """What `log_metrics` writes to. A writer that shows scalars takes ten lines.

    One that keeps records also has `resume`, see `ResumableWriter`; one that can read them back has
    `history`, as `JsonLines` does, for a `fit` that finds its run complete. `write` may be called
    again after `close`: one writer serves several calls of `fit`.

    >>> from hooks.writers.values import Text
    >>> class Printer:
    ...     def write(self, step, values):
    ...         scalars = {k: v for k, v in values.items() if isinstance(v, float)}
    ...         print(step, scalars)
    ...     def flush(self):
    ...         pass
    ...     def close(self):
    ...         pass
    >>> Printer().write(5, {"train/loss": 0.25, "sample": Text("Once upon a time")})
    5 {'train/loss': 0.25}
    """

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Record values, by name, at a step."""

    def flush(self) -> None:
        """Make everything written durable: a checkpoint follows."""

    def close(self) -> None:
        """Finish, and release threads and files."""


@runtime_checkable
class ResumableWriter(Protocol):
    """A writer that keeps records: a resumed run must neither duplicate nor lose one."""

    def resume(self, step: int, epoch: int) -> None:
        """Continue from a step and epoch (0, 0: a fresh start): later records are superseded.

        Called at the start by each hook that shares the writer: a second call changes nothing.
        """


@runtime_checkable
class StartableWriter(Protocol):
    """A writer that shows how a run proceeds, also before its first record."""

    def begin(self, progress: Progress) -> None:
        """Prepare for a run that starts or resumes after this many epochs.

        Called at the start by each hook that shares the writer, if there is something to train.
        """


@runtime_checkable
class DryRunWriter(Protocol):
    """A writer that can try a record, for `fit(..., dry_run=True)`.

    For one that has only `resume`, the dry run calls `resume` and `write` instead, since the run's
    own start supersedes the record. A writer without either method is left alone.
    """

    def dry_run(self, step: int, values: Mapping[str, Value]) -> None:
        """Do everything that `write` does, and leave nothing behind."""


def log_missing_history(path: Path, epoch: int) -> None:
    """Log that a resumed run's earlier records are not where a writer keeps them."""
    log.info(
        "%s: it has no records of the %d epochs that this run has done: they were written "
        "elsewhere or are lost; it starts with epoch %d",
        *(path, epoch, epoch + 1),
    )
