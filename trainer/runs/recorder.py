"""What a run holds while it records: its directory, a queue, a thread that delivers it."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.select import (
    Stamp,
    get_local_checkpoint_folder,
    iterate_checkpoints,
    read_stamp,
)
from trainer.host.redaction import redact_text
from trainer.runs.delivery import DeliveryThread
from trainer.runs.disk_queue import DiskQueue
from trainer.runs.rows import Artifact
from trainer.runs.run_directory import (
    QUEUE,
    claim_directory,
    describe_checkpoint,
    list_artifacts,
    list_checkpoint_epochs,
)

log = logging.getLogger("entracte")

CLOSE_SECONDS = 10.0
"""Seconds in which what waits must be delivered when a run ends; else it stays in the queue."""

LIST_SECONDS = 5.0
"""Seconds between two listings of the files that a run wrote; the last one is when it ends."""

FREQUENT = ("records", "beat")
"""Lines that may not use the last sixteenth of the queue; it is kept for rare lines."""


class RunRecorder:
    """Puts lines in the queue of a run's directory, which a thread delivers to a store.

    The directory is created. The queue may take `limit` bytes.

    Raises:
        DirectoryInUse: another process trains there, or another `Run` of this one records there.
        OSError: the directory or the queue cannot be written to.
    """

    def __init__(self, name: str, directory: Path, url: str, *, limit: int) -> None:
        self.resumed: tuple[int, int] | None = None
        """Epoch and step at which the run resumed, until it is beyond them."""
        self.ended = False
        self._name, self._directory, self._limit = name, directory, limit
        self._to = redact_text(url)
        self._lost = 0
        self._listed: dict[int, Stamp | None] = {}
        self._warned: dict[int, Stamp | None] = {}
        self._files: dict[Artifact, int] = {}
        self._listed_at = -LIST_SECONDS
        self._relist = True
        self._listing_failed = False
        with contextlib.ExitStack() as undo:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = undo.enter_context(claim_directory(directory))
            self._queue = DiskQueue(directory / QUEUE, limit=limit)
            undo.callback(self._queue.close)
            self._delivery = DeliveryThread(url, self._queue, self._list_changes)
            self._delivery.start()
            self._undo = undo.pop_all()

    def enqueue(self, do: str, **what: Any) -> bool:
        """Put a line in the queue; return False if that is full, which is logged once."""
        spare = self._limit // 16 if do in FREQUENT else 0
        origin = {"run": self._name, "of": os.fspath(self._directory), "to": self._to}
        accepted = self._queue.put({"do": do, **origin, **what}, spare=spare)
        if not accepted:
            if not self._lost:
                log.error(
                    "%s is full: what run %r records from here on is lost, until the store takes "
                    "what waits there",
                    *(self._queue.path, self._name),
                )
            self._lost += 1
        elif self._lost and do in FREQUENT:
            log.warning(
                "%s has room again: %d lines of run %r were lost",
                *(self._queue.path, self._lost, self._name),
            )
            self._lost = 0
        self._delivery.wake()
        return accepted

    def relist(self) -> None:
        """List all checkpoints and files again, since their rows may have been deleted."""
        self._relist = True
        self._delivery.wake()

    def sync(self) -> None:
        """Make the queue survive a power failure.

        Raises:
            DirectoryInUse: the run's lock was removed or replaced, so that another process may
                record there.
            OSError: the queue was replaced, or the disk fails.
        """
        self._lock.check()
        self._queue.sync()

    def _list_changes(self) -> None:
        """Record new and removed checkpoints and files; called by the delivery thread."""
        try:
            relist = self._relist
            self._list_checkpoints()
            if relist or time.monotonic() - self._listed_at >= LIST_SECONDS:
                self._listed_at = time.monotonic()
                self._list_files(None if relist else self._files)
        except Exception as error:  # whatever it is, records must still be delivered
            self._relist = True
            if not self._listing_failed:
                cause = None if isinstance(error, OSError) else error
                message = "the files of run %r cannot be listed: %s"
                log.warning(message, self._name, error, exc_info=cause)
            self._listing_failed = True
        else:
            self._listing_failed = False

    def _list_checkpoints(self) -> None:
        relist, self._relist = self._relist, False
        before = {} if relist else self._listed
        folder = get_local_checkpoint_folder(self._directory)
        self._listed = {n: stamp for n, stamp in before.items() if read_stamp(folder, n) == stamp}
        for epoch, stamp, found in iterate_checkpoints(
            folder,
            lambda: [n for n in list_checkpoint_epochs(self._directory) if n not in self._listed],
            lambda epoch: describe_checkpoint(self._directory, epoch),
        ):
            if isinstance(found, DamagedCheckpoint):  # skip it until it is replaced, and warn once
                if self._warned.get(epoch) != stamp:
                    log.warning("not recorded of run %r: %s", self._name, found)
                self._listed[epoch] = self._warned[epoch] = stamp
            elif self.enqueue("commit", **found._asdict()):
                self._listed[epoch] = stamp
        if relist or before.keys() - self._listed.keys():
            epochs = list_checkpoint_epochs(self._directory)
            if not self.enqueue("commits", epochs=epochs):
                self._relist = True

    def _list_files(self, before: Mapping[Artifact, int] | None) -> None:
        found, known = list_artifacts(self._directory), before or {}
        self._files = {
            file: changed
            for file, changed in found.items()
            if known.get(file) == changed or self.enqueue("artifact", **file._asdict())
        }
        gone = {file.path for file in known} - {file.path for file in found}
        renew = before is None or gone
        if renew and not self.enqueue("gone", directory=os.fspath(self._directory)):
            self._relist = True

    def close(self) -> None:
        """Deliver what waits, within some seconds, and release everything."""
        self._listed_at = -LIST_SECONDS
        with self._undo:
            if not self._delivery.close(CLOSE_SECONDS):
                log.warning(
                    "the store did not take all in %g s: the rest stays in %s, and is delivered "
                    "when the run resumes, or by entracte deliver",
                    *(CLOSE_SECONDS, self._queue.path),
                )
