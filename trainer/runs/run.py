"""A run as its own process sees it: what it records is queued, and delivered to the store."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.checkpoints.directory_lock import DirectoryInUse, find_holder
from trainer.checkpoints.manifest import DamagedCheckpoint
from trainer.checkpoints.saved_config import normalize_config
from trainer.checks.paths import to_absolute_path
from trainer.host.machine import describe_environment
from trainer.host.processes import is_main_process
from trainer.host.redaction import redact_text
from trainer.host.safe_open import own_folder
from trainer.loop.shutdown import defer_close
from trainer.runs.artifacts import within
from trainer.runs.checkpoint_rows import describe_checkpoint, list_complete_epochs
from trainer.runs.connections import Unreachable, resolve_store_url
from trainer.runs.delivery import check_destination, deliver
from trainer.runs.disk_queue import LIMIT, DiskQueue
from trainer.runs.recorder import QUEUE, RunRecorder, claim_directory
from trainer.runs.rows import RunRow
from trainer.runs.store import Store
from trainer.runs.text import check_name, clean

log = logging.getLogger("entracte")


class Run:
    """One training run, for the hooks that put it on record: `Database`, `heartbeat` and others.

    What they record is in a queue on the disk, `queue.jsonl` in the run's directory, when the call
    returns; a thread delivers it. A store that is locked or away is no matter: the queue waits, and
    what a process leaves there the next one delivers. While the run is on record, its directory is
    locked against other processes, and against other `Run`s in this one. On several processes all
    make it, and the lead records. Threads may share it.

    Args:
        directory: of the run, that of its checkpoints; what links lead there is no matter.
        name: under which it is on record; where None, that under which the directory is on record
            already, else the name of the directory.
        store: directory of the runs, a file, or a URL, see `Store`; where None the SQLite store in
            the directory that holds this one.
        config: the run's configuration, plain JSON data; passwords are left out of it.
        limit: bytes that the queue may take on the disk; beyond them, records are lost, and a
            message says so.

    Raises:
        ValueError: a run of this name is on record from another directory; a name that cannot be
            one; the store is of a newer version.
        Unreachable: the store does not answer, and this directory has never been on record.

    What records raises `DirectoryInUse` where another process or another `Run` has the directory.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = Run(f"{folder}/digits")
    ...     run.resume(epoch=0, step=0)
    ...     run.record(1, 28, {"val/loss": 0.5})
    ...     run.close()
    ...     with Store(folder) as store:
    ...         print(store.records("digits"), store.run("digits").state)
    [Record(name='val/loss', epoch=1, step=28, value=0.5)] interrupted
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        name: str | None = None,
        store: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
        limit: int = LIMIT,
    ) -> None:
        given = to_absolute_path(directory, "Run")
        self.directory = Path(os.path.realpath(given))
        self.name = check_name(given.name if name is None else name, "a run")
        self.url = resolve_store_url(given.parent if store is None else store)
        self._config = None if config is None else normalize_config(config)
        self._limit = limit
        self._lock = threading.RLock()
        self._open: RunRecorder | None = None
        if is_main_process():
            self._check(named=name is not None)

    def __repr__(self) -> str:
        return f"Run({self.name!r})"

    @property
    def is_recording(self) -> bool:
        """Whether something was recorded since it was made, or closed."""
        return self._open is not None

    def _check(self, *, named: bool) -> None:
        """Find the run's entry; refuse before training what could not be delivered."""
        try:
            with Store(self.url) as store:
                rows = store.runs()
                self._find_entry(store, rows, named=named)
                for row in rows:
                    if row.name == self.name and self._is_another(row):
                        raise ValueError(
                            f"a run named {self.name!r} is on record in {store.connection.where}, "
                            f"from {row.directory!r}, and this one is in {str(self.directory)!r}: "
                            "give this one another name, Run(..., name=...)"
                        )
                    if row.name == self.name and not (self.directory / QUEUE).exists():
                        log.warning(
                            "run %r is on record in %s with %d epochs, and nothing of it is in %s: "
                            "what is trained there takes its place; Run(..., name=...) keeps it",
                            *(self.name, store.connection.where, row.epoch, self.directory),
                        )
        except Unreachable as error:
            if not (self.directory / QUEUE).exists():
                error.add_note(
                    f"run {self.name!r} has never been on record: start the store, or name another "
                    "(a run that is on record queues what it records on the disk, and goes on)"
                )
                raise
            log.warning("%s: what this run records is queued in %s", error, self.directory)

    def _find_entry(self, store: Store, rows: Sequence[RunRow], *, named: bool) -> None:
        """Have one entry for a run, however its directory was named; say so where that fails."""
        here = [row for row in rows if self._seen_here(row)]
        there = {row.name for row in here if os.path.realpath(row.directory) == str(self.directory)}
        if there and self.name not in there:
            if not named:
                self.name = min(there)
                log.info("%s is on record as run %r", self.directory, self.name)
                return
            log.warning(
                "%s is on record as run %r too: leave name= out to go on in that entry",
                self.directory,
                min(there),
            )
        new = not there and not named and all(row.name != self.name for row in rows)
        if new and (before := self._moved(store, here)):
            log.warning(
                "%s holds what run %r recorded in %s, where nothing is any more: Run(..., name=%r) "
                "goes on in its entry, and this begins another, %r",
                *(self.directory, before.name, before.directory, before.name, self.name),
            )

    def _moved(self, store: Store, here: Sequence[RunRow]) -> RunRow | None:
        """Give the run whose newest commit lies in this directory, and whose own one is gone."""
        with contextlib.suppress(DamagedCheckpoint):
            commits = [
                describe_checkpoint(self.directory, epoch)
                for epoch in list_complete_epochs(self.directory)[-1:]
            ]
            same = {
                name
                for commit in commits
                for (name,) in store.connection.execute(
                    "SELECT run FROM commits WHERE epoch = ? AND checksum = ?",
                    (commit.epoch, commit.checksum),
                )
            }
            gone = (row for row in here if not os.path.lexists(row.directory))
            return next((row for row in gone if row.name in same), None)
        return None

    def _seen_here(self, row: RunRow) -> bool:
        """Say whether the directory of a run on record is one of this machine."""
        return self.url.startswith("sqlite:") or row.host == socket.gethostname()

    def _is_another(self, row: RunRow) -> bool:
        """Say whether a run on record is another one, of this name, and not this one moved."""
        if row.directory == clean(os.fspath(self.directory)):
            return row.host != socket.gethostname() and not (self.directory / QUEUE).exists()
        if not self._seen_here(row):
            return True
        there = os.path.realpath(row.directory)
        return os.path.exists(there) and there != os.path.realpath(self.directory)

    def resume(self, *, epoch: int, step: int) -> None:
        """Take it that the run goes on from here (0, 0: afresh): later records are superseded."""
        with self._lock:
            opened = self._opened()
            if opened.resumed == (epoch, step):  # by another hook that shares this run
                return
            opened.resumed = epoch, step
            opened.put("rewind", epoch=int(epoch), step=int(step))
            opened.list_anew()

    def record(self, epoch: int, step: int, values: Mapping[str, float | str]) -> None:
        """Record values of metrics, numbers or texts; nan and the infinities are kept."""
        opened = self._opened()
        if opened.resumed and step > opened.resumed[1]:  # or it is of before training
            opened.resumed = None
        opened.put(
            "records",
            epoch=int(epoch),
            step=int(step),
            values={name: v if isinstance(v, str) else float(v) for name, v in values.items()},
        )

    def heartbeat(self, *, epoch: int, step: int, epochs: int | None = None) -> None:
        """Give a sign of life."""
        total = None if epochs is None else int(epochs)
        self._opened().put("beat", epoch=int(epoch), step=int(step), epochs=total, time=time.time())

    def end(self, state: str, error: str = "") -> None:
        """Record how the run ended: `finished`, `interrupted` or `failed`, and of what."""
        opened = self._opened()
        opened.ended = True
        opened.put("end", state=state, error=redact_text(error), time=time.time())

    def artifact(self, path: str | os.PathLike[str], kind: str, *, epoch: int, step: int) -> None:
        """Record a file that the run left."""
        file = to_absolute_path(path, "Run.artifact")
        self._opened().put(
            "artifact",
            path=within(self.directory, file),
            kind=kind,
            epoch=int(epoch),
            step=int(step),
            bytes=file.stat().st_size,
        )

    def ask(self, suite: str, epoch: int) -> bool:
        """Ask for a commit that is complete to be evaluated; False where it is damaged or gone."""
        try:
            commit = describe_checkpoint(self.directory, epoch)
        except DamagedCheckpoint as damage:
            log.warning("no evaluation by %r is asked for: %s", suite, damage)
            return False
        with self._lock:
            opened = self._opened()
            opened.put("commit", **commit._asdict())  # or a worker might not find it yet
            return opened.put(
                "ask", suite=suite, epoch=commit.epoch, checksum=commit.checksum, time=time.time()
            )

    def flush(self) -> None:
        """Make what was recorded outlast a power failure; it need not be in the store."""
        if opened := self._open:
            opened.sync()

    def close(self) -> None:
        """Deliver what waits, as far as the store takes it, and unlock the directory.

        Where hooks are being closed, that is done when all of them are, so that what they leave is
        on record. Where nothing told how the run ended, it failed if an exception is under way, and
        was interrupted otherwise. It may be recorded in again.
        """
        defer_close(self._close)

    def _close(self) -> None:
        with self._lock:
            opened = self._open
            if opened is None:
                return
            try:
                if not opened.ended:
                    error = sys.exc_info()[1]
                    failed = isinstance(error, Exception) and error is not opened.before
                    said = f"{type(error).__name__}: {error}" if failed else ""
                    self.end("failed" if failed else "interrupted", said)
            finally:  # where the disk is full, too
                self._open = None
                opened.close()

    def _opened(self) -> RunRecorder:
        with self._lock:
            if self._open is None:
                opened = RunRecorder(self.name, self.directory, self.url, limit=self._limit)
                self._open = opened
                opened.put(
                    "register",
                    directory=os.fspath(self.directory),
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    time=time.time(),
                    config=self._config,
                    environment=describe_environment(),
                )
            return self._open


def deliver_queue(store: Store, directory: str | os.PathLike[str], *, named: bool = True) -> int:
    """Deliver what a run that has ended left in its queue.

    Args:
        store: to deliver to, that of the run.
        directory: of the run.
        named: whether the store named the directory, and not this user: then no component of the
            path may be a link, and the directory and its queue must belong to this user.

    Returns:
        How many lines that were; 0 where there is no queue, or the run is going on.

    Raises:
        UnsafeFile: the queue is no regular file of its own, or what `named` asks for does not hold.
        ValueError: the store named the directory, and what waits there is for another store.
        Unreachable: the store does not answer.
    """
    queue = Path(directory) / QUEUE
    if not os.path.lexists(queue):
        return 0
    if named:  # before the lock is looked for, which may lie elsewhere
        os.close(own_folder(directory))
    if find_holder(queue.parent):
        return 0
    with (
        contextlib.suppress(DirectoryInUse),  # taken since
        claim_directory(queue.parent),
        contextlib.closing(DiskQueue(queue, named=named)) as journal,
    ):
        if named:
            check_destination(store, journal)
        return deliver(store, journal)
    return 0
