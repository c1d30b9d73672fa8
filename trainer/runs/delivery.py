"""Delivery: what a run queued reaches the store, on a thread of its own, sooner or later."""

from __future__ import annotations

import itertools
import json
import logging
import operator
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from trainer.host.escaping import escape_text
from trainer.host.redaction import redact_text
from trainer.runs import requests
from trainer.runs.connections import Unreachable
from trainer.runs.disk_queue import DiskQueue, QueueClosed
from trainer.runs.rows import Artifact, CheckpointRow
from trainer.runs.store import Store

log = logging.getLogger("entracte")

PAUSES = (0.5, 30.0)
"""Seconds until a store that did not answer is tried again: at first, and at most."""

PATIENCE = 5.0
"""Seconds to wait for a server, or for a lock, at each try."""

GATHERING = 0.05
"""Seconds in which lines gather before they are delivered together."""

APPLY: Mapping[str, Callable[..., None]] = {
    "register": Store.register,
    "beat": Store.heartbeat,
    "end": Store.end,
    "rewind": Store.rewind,
    "commit": lambda store, run, **row: store.write_commit(run, CheckpointRow(**row)),
    "commits": lambda store, run, epochs: store.remove_commits(
        run, {row.epoch for row in store.commits(run, present=True)}.difference(epochs)
    ),
    "artifact": lambda store, run, **row: store.write_artifact(run, Artifact(**row)),
    "gone": Store.forget_artifacts,
    "ask": requests.create_request,
}
"""What a line may say that is to be done, besides `records`, of which many are written at once."""

ABOUT = ("of", "to")
"""What a line says besides: of which directory it is, and for which store, without a password."""

_RECORDED = operator.itemgetter("run", "epoch", "step", "values")


def deliver(store: Store, journal: DiskQueue) -> int:
    """Deliver all that waits, and give how many lines that was.

    A batch is written at once, and only then taken out of the queue: where a process is killed
    between, the lines are written again, which changes nothing. A line that the store would never
    take, being damaged or of a newer version, is set aside, so that it holds up no other.

    Raises:
        Unreachable: the store does not answer; what it did not take stays in the queue.
        Closed: the queue was closed meanwhile; what was under way is undone.
    """
    count = 0
    while True:
        lines, place = journal.peek_batch()
        if not lines:
            return count
        try:
            _write(store, journal, lines)
        except (Unreachable, QueueClosed):
            raise
        except Exception:  # one of them is at fault
            for line in lines:
                _write_or_set_aside(store, journal, line)
        journal.acknowledge(place)
        count += len(lines)


def _write(store: Store, journal: DiskQueue, lines: Sequence[bytes]) -> None:
    own = [line for line in map(json.loads, lines) if not _copied(line, journal)]
    with store.connection.transaction():
        for do, alike in itertools.groupby(own, operator.itemgetter("do")):
            if do == "records":
                store.write_many(map(_RECORDED, alike))
                continue
            for what in alike:
                APPLY[what.pop("do")](store, **{k: v for k, v in what.items() if k not in ABOUT})
        journal.check()  # else another may have it, and these be older than what that one wrote


def _copied(line: Mapping[str, str], journal: DiskQueue) -> bool:
    """Say whether a line is of another run, whose directory was copied: that delivers its own."""
    here = os.fspath(journal.path.parent)
    of = line.get("of", here)
    return of != here and os.path.isdir(of) and not os.path.samefile(of, here)


def check_destination(store: Store, journal: DiskQueue) -> None:
    """Check that what waits in a queue is for this store: another one may name any directory.

    SQLite's file may have been moved along with the directory.

    Raises:
        ValueError: it is for another.
    """
    try:
        line = json.loads(journal.peek_batch()[0][0])
        of, there = str(line["of"]), str(line["to"])
    except (
        ValueError,
        LookupError,
        TypeError,
    ):  # of an older version
        return
    here = redact_text(store.url)
    if there != here and not (_beside(here, journal.path.parent) == _beside(there, of) != ""):
        raise ValueError(
            f"what waits in {journal.path} is for the store {there}: give that one, or the run by "
            "the path of its directory if it shall come here"
        )


def _beside(url: str, directory: str | os.PathLike[str]) -> str:
    """Give the path of SQLite's file relative to a run's directory; "" of another store."""
    file = url.removeprefix("sqlite:///")
    return "" if file == url else os.path.relpath(file, directory)


def _write_or_set_aside(store: Store, journal: DiskQueue, line: bytes) -> None:
    try:
        _write(store, journal, [line])
    except (Unreachable, QueueClosed):
        raise
    except Exception as error:
        log.error(
            "the store %s takes no %s: it is kept in %s",
            store.connection.where,
            escape_text(line[:200].decode("utf-8", "replace")),
            journal.set_aside(line),
            exc_info=error,
        )


class Delivery:
    """A thread that delivers a queue to a store, and tries again where the store is away.

    Args:
        url: of the store.
        journal: the queue.
        prepare: called before each delivery, to put in what has come about meanwhile.
    """

    def __init__(self, url: str, journal: DiskQueue, prepare: Callable[[], None]) -> None:
        self._url, self._journal, self._prepare = url, journal, prepare
        self._woken, self._closing = threading.Event(), threading.Event()
        self._until = 0.0
        self._failing_since: float | None = None
        # A daemon: a server that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="entracte-store", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Say that something waits."""
        self._woken.set()

    def close(self, timeout: float) -> bool:
        """Deliver what waits, end the thread; False where it was not all delivered in time."""
        self._until = time.monotonic() + timeout
        self._closing.set()
        self._woken.set()
        self._thread.join(timeout)
        return not self._thread.is_alive() and self._journal.empty

    def _work(self) -> None:
        store: Store | None = None
        pause = PAUSES[0]
        while True:
            closing = self._closing.is_set()
            self._woken.clear()
            try:
                self._prepare()
                if store is None and not self._journal.empty:
                    # Not made anew, for it may be on a disk that is away.
                    store = Store(self._url, create=False, patience=PATIENCE)
                if store is not None:
                    deliver(store, self._journal)
                    self._tell_of_return()
                pause = PAUSES[0]
            except QueueClosed:  # while this one waited for the store, nobody waited for this one
                if store is not None:
                    store.close()
                return
            except Exception as error:  # whatever it is, training goes on and the queue is kept
                self._tell_of_failure(error)
                if store is not None:
                    store.close()
                    store = None
                if not closing:
                    self._closing.wait(pause)
                    pause = min(2 * pause, PAUSES[1])
                elif time.monotonic() + PAUSES[0] < self._until:
                    time.sleep(PAUSES[0])
                else:
                    return
                continue
            if closing:
                if store is not None:
                    store.close()
                return
            self._woken.wait()
            self._closing.wait(GATHERING)

    def _tell_of_failure(self, error: Exception) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            log.warning(
                "%s: what is recorded is queued in %s, and delivered when the store %s is back",
                error,
                self._journal.path,
                redact_text(self._url),
                exc_info=None if isinstance(error, Unreachable | FileNotFoundError) else error,
            )

    def _tell_of_return(self) -> None:
        if self._failing_since is not None:
            away = time.monotonic() - self._failing_since
            log.info("the store %s is back after %.0f s", redact_text(self._url), away)
            self._failing_since = None
