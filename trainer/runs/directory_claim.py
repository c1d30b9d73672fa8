"""Claim a run's directory, so that its queue has one owner."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from trainer.checkpoints.directory_lock import DirectoryInUse, DirectoryLock, lock_for_recording

QUEUE = "queue.jsonl"
"""File in the run's directory with what is not yet in the store."""

_claimed: set[tuple[int, str]] = set()
"""Process id and directory of each queue that is open here; a fork owns none of them."""


@contextlib.contextmanager
def claim_directory(directory: Path) -> Iterator[DirectoryLock]:
    """Claim a run's directory, against other processes and within this one.

    Raises:
        DirectoryInUse: another process has it, or another run in this one.
    """
    key = os.getpid(), os.path.realpath(directory)
    if key in _claimed:
        raise DirectoryInUse(
            f"{directory} is recorded by another Run in this process, and its queue has one "
            "owner: give all hooks the same Run, or close that one first"
        )
    _claimed.add(key)
    try:
        lock = lock_for_recording(directory)
        try:
            yield lock
        finally:
            lock()
    finally:
        _claimed.discard(key)
