"""The lease of a run in a bucket: one process trains there at a time, and a dead one loses it.

The lease is an object that its holder writes anew every few seconds. Who wants it waits until it
has not changed for a while, by its own clock: clocks of machines are not compared.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import threading
import time
from typing import Any

from trainer.checkpoints.storage.bucket_path import BucketError, BucketPath
from trainer.checkpoints.storage.directory_lock import DirectoryInUse
from trainer.checkpoints.storage.process_identity import identify_process, is_gone
from trainer.host.machine import describe_process

log = logging.getLogger("entracte")

RENEW_SECONDS = 10.0
"""Seconds between two renewals."""

STALE_SECONDS = 60.0
"""Seconds without a renewal after which another process may take the lease."""

TRUST_SECONDS = 36.0
"""Seconds without a renewal after which its holder saves nothing more: well before it is stale."""

SETTLE_SECONDS = 1.0
"""Seconds after which the holder looks whether another process took it at the same instant."""

_FILE = "lock"


def _read_clock() -> float:
    """Return seconds that also pass while the machine sleeps, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lease:
    """The lease that this process holds. Call it to release; a second call does nothing."""

    def __init__(
        self, run: BucketPath, generation: bytes, content: dict[str, Any], written: float
    ) -> None:
        self._file, self._generation, self._content = run / _FILE, generation, content
        self._renewed = written
        self._lost = self._released = False
        self._thread = threading.get_ident()
        self._renewal = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._renew_often, name="entracte-lease", daemon=True).start()

    def _renew_often(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                self._renew()
            except BucketError as error:
                log.warning(
                    "the lease of a run was not renewed, and will be tried again: %s", error
                )

    def _renew(self) -> None:
        with self._renewal:
            if self._lost or self._released:
                return
            now = _read_clock()
            self._content["renewals"] += 1
            found = self._file.replace(_encode(self._content), self._generation)
            if found is None:  # or an earlier renewal was written, and its answer was lost
                content, generation = self._file.read_with_generation()
                if _decode(content).get("nonce") == self._content["nonce"]:
                    found = self._file.replace(_encode(self._content), generation)
            self._lost = found is None
            self._generation, self._renewed = found or b"", now

    def check(self) -> None:
        """Check that this process still has the lease; renew it if it was not lately.

        Raises:
            BucketError: it could not be renewed in time.
            DirectoryInUse: another process took it.
        """
        if not self._lost and _read_clock() - self._renewed > TRUST_SECONDS:
            self._renew()
        if self._lost:
            holder = _describe(_decode(self._file.read_with_generation()[0]))
            raise DirectoryInUse(
                f"the lease of this run, {self._file}, was lost while the run had it: {holder}, so "
                "nothing is saved any more; earlier checkpoints are kept. This process was "
                f"stopped or without a network for more than {STALE_SECONDS:g} seconds, or the "
                "object was removed. Make sure that no other process uses this run, and start it "
                "again: it resumes"
            )

    def by_this_thread(self) -> bool:
        """Return whether the calling thread is the one that took it."""
        return self._thread == threading.get_ident()

    def forget(self) -> None:
        """Neither renew nor release it any more: it belongs to another process."""
        self._released, self._renewal = True, threading.Lock()

    def __call__(self) -> None:
        """Release the run."""
        with _guard:
            if self._released:
                return
            self._released = True
            self._ended.set()
            _held.pop(self._file.parent, None)
        with self._renewal:
            if not self._lost:
                try:
                    self._file.replace(None, self._generation)
                except BucketError as error:
                    log.warning("the lease of a run was not released, and will end: %s", error)


_held: dict[BucketPath, Lease | None] = {}
"""By the path of the run; None while it is being taken."""

_guard = threading.Lock()


def take_lease(run: BucketPath) -> Lease:
    """Take the lease of a run, to train in it.

    If a process that is gone has it, this waits until it is stale, or not at all if that process
    was on this machine.

    Raises:
        BucketError: the bucket does not answer, or refuses.
        DirectoryInUse: another process, or another hook or thread of this one, trains there.
    """
    with _guard:
        if run in _held:
            raise DirectoryInUse(
                f"{run} is in use: a hook or a thread of this process saves there, and two would "
                "overwrite each other's checkpoints; give each a path of its own"
            )
        _held[run] = None
    content = {
        "holder": describe_process(),
        "process": identify_process(),
        "nonce": secrets.token_hex(8),
        "renewals": 0,
    }
    try:
        while not (written := _write_first(run, content)):
            pass
        lease = Lease(run, written[0], content, written[1])
    except BaseException:
        with _guard:
            del _held[run]
        raise
    with _guard:
        _held[run] = lease
    return lease


def _write_first(run: BucketPath, content: dict[str, Any]) -> tuple[bytes, float] | None:
    """Write a lease where nobody has one, and return its generation, and since when it counts.

    Returns:
        None if another process wrote one at the same instant.
    """
    file, before = run / _FILE, _wait_until_free(run)
    began = _read_clock()
    generation = file.replace(_encode(content), before)
    if generation is None:
        return None
    try:
        time.sleep(SETTLE_SECONDS)
        return (generation, began) if file.read_generation() == generation else None
    except BaseException:  # such as an interrupt
        with contextlib.suppress(BucketError):
            file.replace(None, generation)
        raise


def check_lease(run: BucketPath) -> None:
    """Check the lease of a run if this process took it.

    Raises:
        BucketError, DirectoryInUse: as `Lease.check`.
    """
    with _guard:
        lease = _held.get(run)
    if lease is not None:
        lease.check()


def find_lease_holder(run: BucketPath, *, by_others: bool = False) -> str | None:
    """Return which process has the lease of a run, or had it when it ended; None if none does.

    Args:
        run: the path.
        by_others: leave this process out.
    """
    with _guard:
        if by_others and run in _held:
            return None
    content, _ = (run / _FILE).read_with_generation()
    found = _decode(content)
    return None if content is None or is_gone(found.get("process")) else _describe(found)


def _wait_until_free(run: BucketPath) -> bytes | None:
    """Wait until nobody has the lease, and return the generation of its object, None without."""
    file, logged = run / _FILE, False
    content, first = file.read_with_generation()
    began = _read_clock()
    while True:
        if content is None:
            return None
        found = _decode(content)
        if _is_free(found.get("process")) or _read_clock() - began > STALE_SECONDS:
            return first
        if not logged:
            log.info(
                "%s: %s; waiting up to %g seconds to see whether it still does",
                *(run, _describe(found), STALE_SECONDS),
            )
            logged = True
        time.sleep(1.0)
        content, generation = file.read_with_generation()
        if content is not None and generation != first:
            raise DirectoryInUse(
                f"{run} is in use: {_describe(_decode(content))}, and two would overwrite each "
                "other's checkpoints; give this run another path, or end that process first"
            )


def _is_free(holder: Any) -> bool:
    """Return whether a holder is gone, or is this process, which could not release the lease."""
    return is_gone(holder) or (holder is not None and holder == identify_process())


def _encode(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()


def _decode(content: bytes | None) -> dict[str, Any]:
    """Return what is in the object; what this library did not write says nothing."""
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _describe(found: dict[str, Any]) -> str:
    holder = found.get("holder")
    known = isinstance(holder, str) and holder.isprintable() and len(holder) < 200
    return f"{holder if known else 'another process'} trains there"


def _forget() -> None:
    """Hold nothing in a forked child: the leases belong to its parent."""
    global _guard
    _guard = threading.Lock()
    for lease in _held.values():
        if lease is not None:
            lease.forget()
    _held.clear()


os.register_at_fork(after_in_child=_forget)
