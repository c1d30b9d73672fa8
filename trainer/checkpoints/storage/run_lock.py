"""One process trains in a run at a time: a lock of a directory on a disk, a lease in a bucket."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from trainer.checkpoints.storage.directory_lock import lock_directory
from trainer.checkpoints.storage.lease import take_lease
from trainer.checkpoints.storage.run_paths import RunPath
from trainer.host.processes import fail_together, is_main_process


class RunLock(Protocol):
    """A run that this process holds. Call it to release; a second call does nothing."""

    def __call__(self) -> None:
        """Release the run."""

    def by_this_thread(self) -> bool:
        """Return whether the calling thread is the one that took it."""

    def check(self) -> None:
        """Raise DirectoryInUse if another process may train there by now."""


class _HeldElsewhere:
    """What processes other than the main one have of a lease."""

    def __call__(self) -> None: ...

    def by_this_thread(self) -> bool:
        return True

    def check(self) -> None: ...


def lock_run(run: RunPath) -> RunLock:
    """Lock a run for this process and this thread; on several processes all must call it.

    Raises:
        BucketError: the bucket does not answer, or refuses.
        DirectoryInUse: another process, or another hook or thread of this one, trains in it.
        OSError: the lock cannot be written.
        RuntimeError: one of them was raised on the main process, and this is another one.
    """
    if isinstance(run, Path):
        return lock_directory(run)
    with fail_together(f"taking the lease of {run}"):
        if is_main_process():
            return take_lease(run)
    return _HeldElsewhere()
