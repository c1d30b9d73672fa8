"""Delivery: write the lines of a queue to a store, all of them and none twice, on a thread."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import operator
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trainer.checkpoints.storage.directory_lock import DirectoryInUse, find_holder
from trainer.host.escaping import escape_text
from trainer.host.redaction import redact_text
from trainer.host.safe_open import open_own_folder
from trainer.runs.disk_queue import DiskQueue, QueueClosed
from trainer.runs.requests import create_request
from trainer.runs.rows import Artifact, CheckpointRow
from trainer.runs.run_directory import QUEUE, claim_directory
from trainer.runs.sql.connection import Unreachable
from trainer.runs.store import Store
from trainer.runs.store_client import StoreClient

log = logging.getLogger("entracte")

ACTIONS: Mapping[str, Callable[..., None]] = {
    "register": Store.register,
    "beat": Store.heartbeat,
    "end": Store.end,
    "rewind": Store.rewind,
    "commit": lambda store, run, **row: store.write_checkpoint(run, CheckpointRow(**row)),
    "commits": lambda store, run, epochs: store.mark_removed(
        run, {row.epoch for row in store.checkpoints(run, present=True)}.difference(epochs)
    ),
    "artifact": lambda store, run, **row: store.write_artifact(run, Artifact(**row)),
    "gone": Store.forget_artifacts,
    "ask": create_request,
}
"""What the `do` of a line may name, besides `records`, which are written many at once."""

ORIGIN = ("of", "to")
"""Keys of a line for the directory it is from, and the store it is for, without a password."""

_RECORD = operator.itemgetter("run", "epoch", "step", "values")

RETRY_SECONDS = (0.5, 30.0)
"""Seconds until a store that did not answer is tried again: at first, and at most."""

TIMEOUT = 5.0
"""Seconds to wait for a server, or for a lock, at each try."""

BATCH_SECONDS = 0.05
"""Seconds in which lines collect before they are delivered together."""

IDLE_SECONDS = 0.2
"""Seconds without a line after which the connection to a server is closed: by default it accepts
100, and 1,000 runs may share it. Another one takes milliseconds."""


def deliver(store: Store, queue: DiskQueue) -> int:
    """Deliver all lines that wait, and return their number.

    A batch is written in one transaction, and only then removed from the queue: after a kill in
    between, the lines are written again, which changes nothing. A line that the store would never
    accept, since it is damaged or of a newer version, is set aside, so that the others pass.

    Raises:
        Unreachable: the store does not answer; what it did not take stays in the queue.
        QueueClosed: the queue was closed meanwhile; the batch under way is rolled back.
    """
    count = 0
    while True:
        lines, place = queue.peek_batch()
        if not lines:
            return count
        _write_or_set_aside(store, queue, lines)
        queue.acknowledge(place)
        count += len(lines)


def deliver_queue(store: Store, directory: str | os.PathLike[str], *, named: bool = True) -> int:
    """Deliver what a run that has ended left in its queue.

    Args:
        store: to deliver to, that of the run.
        directory: of the run.
        named: whether the store named the directory, and not this user: then no component of the
            path may be a link, and the directory and its queue must belong to this user.

    Returns:
        The number of lines; 0 if there is no queue, or the run is still running.

    Raises:
        UnsafeFile: the queue is not a regular file, or what `named` requires does not hold.
        ValueError: the store named the directory, and its queue is for another store.
        Unreachable: the store does not answer.
    """
    path = Path(directory) / QUEUE
    if not os.path.lexists(path):
        return 0
    if named:  # before looking for the lock, which may lie elsewhere
        os.close(open_own_folder(directory))
    if find_holder(path.parent):
        return 0
    with (
        contextlib.suppress(DirectoryInUse),  # claimed since
        claim_directory(path.parent),
        contextlib.closing(DiskQueue(path, named=named)) as queue,
    ):
        if named:
            _check_destination(store, queue)
        return deliver(store, queue)
    return 0


def _write(store: Store, queue: DiskQueue, lines: Sequence[bytes]) -> None:
    own = [line for line in map(json.loads, lines) if not _is_of_another_run(line, queue)]
    with store.connection.transaction():
        for do, group in itertools.groupby(own, operator.itemgetter("do")):
            if do == "records":
                store.write_many_records(map(_RECORD, group))
                continue
            for line in group:
                ACTIONS[line.pop("do")](store, **{k: v for k, v in line.items() if k not in ORIGIN})
        queue.check()  # else another process may have it, and may have written something newer


def _is_of_another_run(line: Mapping[str, str], queue: DiskQueue) -> bool:
    """Return whether a line came with a copied directory, whose original delivers its own lines."""
    here = os.fspath(queue.path.parent)
    of = line.get("of", here)
    return of != here and os.path.isdir(of) and not os.path.samefile(of, here)


def _check_destination(store: Store, queue: DiskQueue) -> None:
    """Check that the lines of a queue are for this store: another store may name any directory.

    SQLite's file may have been moved along with the directory.

    Raises:
        ValueError: they are for another store.
    """
    try:
        line = json.loads(queue.peek_batch()[0][0])
        of, to = str(line["of"]), str(line["to"])
    except (ValueError, LookupError, TypeError):  # a line of an older version
        return
    here = redact_text(store.url)
    if to != here and not (_path_from(queue.path.parent, here) == _path_from(of, to) != ""):
        raise ValueError(
            f"what waits in {queue.path} is for the store {to}: give that one, or the run by the "
            "path of its directory if it is to be delivered here"
        )


def _path_from(directory: str | os.PathLike[str], url: str) -> str:
    """Return the path of SQLite's file relative to a run's directory; "" for another store."""
    file = url.removeprefix("sqlite:///")
    return "" if file == url else os.path.relpath(file, directory)


def _write_or_set_aside(store: Store, queue: DiskQueue, lines: Sequence[bytes]) -> None:
    """Write lines at once, else each alone; set aside one that the store would never accept."""
    try:
        _write(store, queue, lines)
    except (Unreachable, QueueClosed):
        raise
    except Exception as error:
        if len(lines) > 1:
            for line in lines:
                _write_or_set_aside(store, queue, [line])
            return
        shown = escape_text(lines[0][:200].decode("utf-8", "replace"))
        log.error(
            "the store %s cannot accept %s: it is kept in %s",
            *(store.connection.label, shown, queue.set_aside(lines[0])),
            exc_info=error,
        )


class DeliveryThread:
    """A thread that delivers a queue to a store. Training never waits for it.

    It calls `prepare` before each delivery, to put in what has changed since.
    """

    def __init__(self, url: str, queue: DiskQueue, prepare: Callable[[], None]) -> None:
        # Never created here, for the store may be on a disk that is away.
        self._client = StoreClient(url, timeout=TIMEOUT)
        self._queue, self._prepare = queue, prepare
        self._wake, self._closing = threading.Event(), threading.Event()
        self._deadline = 0.0
        # A daemon: a server that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="entracte-store", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Deliver soon, since a line was put in."""
        self._wake.set()

    def close(self, timeout: float) -> bool:
        """Deliver what waits and end the thread; return False if lines are left after `timeout`."""
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout)
        return not self._thread.is_alive() and self._queue.empty

    def _work(self) -> None:
        # The queue is closed if `close` timed out while this thread waited for the store.
        with contextlib.closing(self._client), contextlib.suppress(QueueClosed):
            self._deliver_until_closed()

    def _deliver_until_closed(self) -> None:
        pause = RETRY_SECONDS[0]
        while True:
            closing = self._closing.is_set()
            self._wake.clear()
            try:
                self._prepare()
                if not self._queue.empty:
                    self._client.call(deliver, self._queue)
                pause = RETRY_SECONDS[0]
            except QueueClosed:
                raise
            except Exception as error:  # whatever it is, training continues and the queue is kept
                self._client.log_failure(
                    error,
                    f"what is recorded is queued in {self._queue.path}, and delivered when the "
                    f"store {redact_text(self._client.url)} is back",
                )
                if not closing:
                    self._closing.wait(pause)
                    pause = min(2 * pause, RETRY_SECONDS[1])
                elif time.monotonic() + RETRY_SECONDS[0] < self._deadline:
                    time.sleep(RETRY_SECONDS[0])
                else:
                    return
                continue
            if closing:
                return
            if not self._client.is_local and not self._wake.wait(IDLE_SECONDS):
                self._client.close()
            self._wake.wait()
            self._closing.wait(BATCH_SECONDS)
