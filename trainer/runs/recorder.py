"""What a run holds while it is on record: its directory, a queue, a thread that delivers it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.checkpoints.directory_lock import DirectoryInUse, DirectoryLock, lock_for_recording
from trainer.checkpoints.manifest import DamagedCheckpoint
from trainer.checkpoints.select import Stamp, get_checkpoint_folder, read_stamp
from trainer.host.redaction import redact_text
from trainer.runs.artifacts import list_artifacts
from trainer.runs.checkpoint_rows import describe_checkpoint, list_complete_epochs
from trainer.runs.delivery import Delivery
from trainer.runs.disk_queue import DiskQueue
from trainer.runs.rows import Artifact

log = logging.getLogger("entracte")

QUEUE = "queue.jsonl"
"""In the run's directory: what is not yet in the store."""

CLOSING = 10.0
"""Seconds in which what waits must be delivered when a run ends; else it stays in the queue."""

LOOKING = 5.0
"""Seconds between two looks at the files that a run left; the last one is when it ends."""

FREQUENT = ("records", "beat")
"""What leaves the last sixteenth of the queue to the rest, which comes once or twice a run."""

_owned: set[tuple[int, str]] = set()
"""Directories whose queues are open here, with this process's id, for a fork owns none of them."""


@contextlib.contextmanager
def claim_directory(directory: Path) -> Iterator[DirectoryLock]:
    """Have a run's directory to oneself, among processes and in this one.

    Raises:
        InUse: another process has it, or another run in this one.
    """
    key = os.getpid(), os.path.realpath(directory)
    if key in _owned:
        raise DirectoryInUse(
            f"{directory} is on record by another Run in this process, and its queue has one "
            "owner: give all hooks the same Run, or close that one first"
        )
    _owned.add(key)
    try:
        held = lock_for_recording(directory)
        try:
            yield held
        finally:
            held()
    finally:
        _owned.discard(key)


class RunRecorder:
    """Puts lines in the queue of a run's directory, which a thread delivers to a store.

    Args:
        name: of the run.
        directory: of the run; it is made.
        url: of the store.
        limit: bytes that the queue may take.

    Raises:
        InUse: another process trains there, or another run in this one is on record.
        OSError: the directory or the queue cannot be written to.
    """

    def __init__(self, name: str, directory: Path, url: str, *, limit: int) -> None:
        self.resumed: tuple[int, int] | None = None
        """Where the run went on, until it is beyond that."""
        self.ended = False
        self.before = sys.exc_info()[1]
        """What was under way already, and is no failure of this run."""
        self._name, self._directory, self._limit = name, directory, limit
        self._to = redact_text(url)
        self._refused = 0
        self._listed: dict[int, Stamp] = {}
        self._told: dict[int, Stamp] = {}
        self._files: dict[Artifact, int] = {}
        self._looked = -LOOKING
        self._anew = True
        self._blind = False
        with contextlib.ExitStack() as undo:
            directory.mkdir(parents=True, exist_ok=True)
            self._held = undo.enter_context(claim_directory(directory))
            self._journal = DiskQueue(directory / QUEUE, limit=limit)
            undo.callback(self._journal.close)
            self._delivery = Delivery(url, self._journal, self._look_around)
            self._delivery.start()
            self._undo = undo.pop_all()

    def put(self, do: str, **what: Any) -> bool:
        """Put a line in the queue; False where that is full, which is told once."""
        spare = self._limit // 16 if do in FREQUENT else 0
        about = {"run": self._name, "of": os.fspath(self._directory), "to": self._to}
        put = self._journal.put({"do": do, **about, **what}, spare=spare)
        if not put:
            if not self._refused:
                log.error(
                    "%s is full: what run %r records from here on is lost, until the store takes "
                    "what waits there",
                    self._journal.path,
                    self._name,
                )
            self._refused += 1
        elif self._refused and do in FREQUENT:
            log.warning(
                "%s has room again: %d lines of run %r were lost",
                self._journal.path,
                self._refused,
                self._name,
            )
            self._refused = 0
        self._delivery.wake()
        return put

    def list_anew(self) -> None:
        """Have all commits listed again, for what was told of them may be superseded."""
        self._anew = True
        self._delivery.wake()

    def sync(self) -> None:
        """Make what was put in outlast a power failure.

        Raises:
            InUse: the run's lock was removed or replaced, so that another process may record there.
            OSError: the queue was replaced, or the disk fails.
        """
        self._held.check()
        self._journal.sync()

    def _look_around(self) -> None:
        """Record commits and files that have appeared, or are gone; in the thread that delivers."""
        try:
            anew = self._anew
            self._list_commits()
            if anew or time.monotonic() - self._looked >= LOOKING:
                self._looked = time.monotonic()
                self._list_files(None if anew else self._files)
        except Exception as error:  # whatever it is, it keeps no record from being delivered
            self._anew = True
            if not self._blind:
                cause = None if isinstance(error, OSError) else error
                message = "what run %r has left cannot be listed: %s"
                log.warning(message, self._name, error, exc_info=cause)
            self._blind = True
        else:
            self._blind = False

    def _list_commits(self) -> None:
        before = {} if self._anew else self._listed
        anew, self._anew = self._anew, False
        folder = get_checkpoint_folder(self._directory)
        found = {
            epoch: read_stamp(folder, epoch) for epoch in list_complete_epochs(self._directory)
        }
        there = {epoch: seen for epoch, seen in found.items() if seen}
        self._listed = {epoch: seen for epoch, seen in there.items() if before.get(epoch) == seen}
        for epoch in sorted(there.keys() - self._listed.keys()):
            try:
                row = describe_checkpoint(self._directory, epoch)
            except DamagedCheckpoint as damage:  # until it is replaced, which is said once
                self._listed[epoch] = there[epoch]
                if self._told.get(epoch) != there[epoch] == read_stamp(folder, epoch):
                    self._told[epoch] = there[epoch]
                    log.warning("not on record of run %r: %s", self._name, damage)
            else:
                if self.put("commit", **row._asdict()):
                    self._listed[epoch] = there[epoch]
        if (anew or before.keys() - there.keys()) and not self.put("commits", epochs=sorted(there)):
            self._anew = True

    def _list_files(self, before: Mapping[Artifact, int] | None) -> None:
        there, known = list_artifacts(self._directory), before or {}
        self._files = {
            file: changed
            for file, changed in there.items()
            if known.get(file) == changed or self.put("artifact", **file._asdict())
        }
        gone = {file.path for file in known} - {file.path for file in there}
        if (before is None or gone) and not self.put("gone", directory=os.fspath(self._directory)):
            self._anew = True

    def close(self) -> None:
        """Deliver what waits, in some seconds, and let go of everything."""
        self._looked = -LOOKING
        with self._undo:
            if not self._delivery.close(CLOSING):
                log.warning(
                    "the store did not take all in %g s: the rest stays in %s, and is delivered "
                    "when the run goes on, or by python -m trainer deliver",
                    CLOSING,
                    self._journal.path,
                )
