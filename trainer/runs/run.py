"""A run as its own process sees it: what it records is queued, and delivered to the store."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.saved_config import normalize_config
from trainer.checks.paths import to_absolute_path
from trainer.host.machine import describe_environment
from trainer.host.processes import is_main_process
from trainer.host.redaction import redact_text
from trainer.host.rendering.html_tables import render_facts
from trainer.loop.shutdown import defer_close
from trainer.runs.disk_queue import LIMIT
from trainer.runs.recorder import RunRecorder
from trainer.runs.run_directory import describe_checkpoint, to_stored_path
from trainer.runs.run_entry import find_run_name
from trainer.runs.sql.connecting import resolve_store_url
from trainer.runs.text import check_name

log = logging.getLogger("entracte")


class Run:
    """One training run, for the hooks that record it: `Database`, `heartbeat` and others.

    What they record is in a queue on the disk, `queue.jsonl` in the run's directory, when the call
    returns; a thread delivers it. The store may be locked or away: the queue waits, and what one
    process leaves there the next one delivers. While a run records, its directory is locked against
    other processes, and against other `Run`s in this one. On several processes all create the run,
    and the main process records. Threads may share it.

    Args:
        directory: of the run, where its checkpoints are; links are resolved.
        name: under which it is recorded; None takes the name under which the directory is recorded
            already, else the name of the directory.
        store: directory of the runs, a file, or a URL, see `Store`; None takes the SQLite store in
            the directory that holds this one.
        config: the run's configuration, plain JSON data; passwords are left out of it.
        limit: bytes that the queue may take on the disk; beyond them, records are lost, which is
            logged.

    Raises:
        ValueError: a run of this name is recorded from another directory; the name is not valid;
            the store is of a newer version.
        Unreachable: the store does not answer, and this directory has never been recorded.

    What records raises `DirectoryInUse` if another process or another `Run` has the directory.

    >>> import tempfile
    >>> from trainer.runs import Store
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
        self._recorder: RunRecorder | None = None
        self._completed = False
        if is_main_process():
            self.name = find_run_name(self.url, self.directory, self.name, named=name is not None)

    def __repr__(self) -> str:
        return f"Run({self.name!r})"

    def _repr_html_(self) -> str:
        facts = {
            "directory": os.fspath(self.directory),
            "store": redact_text(self.url),
            "recording": "yes" if self.is_recording else "no",
        }
        return render_facts(facts, caption=f"Run {self.name}")

    @property
    def is_recording(self) -> bool:
        """Whether something was recorded since the run was created or closed."""
        return self._recorder is not None

    def resume(self, *, epoch: int, step: int) -> None:
        """Record that the run resumes here (0, 0: starts fresh); later records are deleted."""
        with self._lock:
            recorder = self._open()
            if recorder.resumed == (epoch, step):  # by another hook that shares this run
                return
            recorder.resumed = epoch, step
            recorder.enqueue("rewind", epoch=int(epoch), step=int(step))
            recorder.relist()

    def record(self, epoch: int, step: int, values: Mapping[str, float | str]) -> None:
        """Record metrics, numbers or texts; nan and the infinities are kept."""
        recorder = self._open()
        if recorder.resumed and step > recorder.resumed[1]:  # else it is from before training
            recorder.resumed = None
        recorder.enqueue(
            "records",
            epoch=int(epoch),
            step=int(step),
            values={name: v if isinstance(v, str) else float(v) for name, v in values.items()},
        )

    def heartbeat(self, *, epoch: int, step: int, epochs: int | None = None) -> None:
        """Record a heartbeat."""
        total = None if epochs is None else int(epochs)
        self._open().enqueue(
            "beat", epoch=int(epoch), step=int(step), epochs=total, time=time.time()
        )

    def end(self, state: str, error: str = "") -> None:
        """Record how the run ended: `finished`, `interrupted` or `failed`, and why."""
        recorder = self._open()
        recorder.ended = True
        recorder.enqueue("end", state=state, error=redact_text(error), time=time.time())

    def record_artifact(
        self, path: str | os.PathLike[str], kind: str, *, epoch: int, step: int
    ) -> None:
        """Record a file that the run wrote."""
        file = to_absolute_path(path, "Run.record_artifact")
        self._open().enqueue(
            "artifact",
            path=to_stored_path(self.directory, file),
            kind=kind,
            epoch=int(epoch),
            step=int(step),
            bytes=file.stat().st_size,
        )

    def request_evaluation(self, suite: str, epoch: int) -> bool:
        """Request the evaluation of a checkpoint; return False if it is damaged or gone."""
        try:
            checkpoint = describe_checkpoint(self.directory, epoch)
        except DamagedCheckpoint as damage:
            log.warning("no evaluation by %r is requested: %s", suite, damage)
            return False
        asked = {"epoch": checkpoint.epoch, "checksum": checkpoint.checksum, "time": time.time()}
        with self._lock:
            recorder = self._open()
            recorder.enqueue("commit", **checkpoint._asdict())  # so that workers can find it
            return recorder.enqueue("ask", suite=suite, **asked)

    def flush(self) -> None:
        """Make what was recorded survive a power failure; it need not be in the store yet."""
        if recorder := self._recorder:
            recorder.sync()

    def close(self, error: BaseException | None = None, *, completed: bool = False) -> None:
        """Deliver what waits, as far as the store takes it, and unlock the directory.

        While hooks are being closed, this waits until all of them are, so that whatever they write
        is recorded. The run is recorded as failed if an exception ended it; else, unless `end` was
        called, as finished if it completed its epochs, or as interrupted. It may record again.
        Hooks need not pass the error.
        """
        self._completed |= completed
        defer_close(self._close, error)

    def _close(self, error: BaseException | None) -> None:
        completed, self._completed = self._completed and error is None, False
        with self._lock:
            recorder = self._recorder
            if recorder is None:
                return
            try:
                if isinstance(error, Exception):
                    self.end("failed", f"{type(error).__name__}: {error}")
                elif not recorder.ended:
                    self.end("finished" if completed else "interrupted")
            finally:  # also if the disk is full
                self._recorder = None
                recorder.close()

    def _open(self) -> RunRecorder:
        with self._lock:
            if self._recorder is None:
                recorder = RunRecorder(self.name, self.directory, self.url, limit=self._limit)
                self._recorder = recorder
                recorder.enqueue(
                    "register",
                    directory=os.fspath(self.directory),
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    time=time.time(),
                    config=self._config,
                    environment=describe_environment(),
                )
            return self._recorder
