"""The worker: claims requests under a lease and answers them; a kill at any instant is harmless."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from trainer.evaluators.liveness import LeaseKeeper
from trainer.evaluators.request_handler import RequestHandler, UnanswerableRequest, write_result
from trainer.evaluators.suite import Suite
from trainer.evaluators.time_limits import limit_time
from trainer.host.escaping import escape_text
from trainer.host.signals import ReceivedSignal, catch_signals, end_process
from trainer.runs.requests import (
    TRIES,
    claim_request,
    create_request,
    fail_request,
    reopen_failed,
)
from trainer.runs.rows import Request, RunRow
from trainer.runs.sql.connecting import resolve_store_url
from trainer.runs.sql.connection import Unreachable
from trainer.runs.store import Store
from trainer.runs.store_client import (
    MAX_PAUSE_SECONDS,
    Result,
    StoreClient,
    sleep_unless_stopped,
)

log = logging.getLogger("entracte")


@dataclasses.dataclass(frozen=True)
class WorkerSettings:
    """How long a worker waits, and how often it tries."""

    lease: float = 60.0
    """Seconds without a heartbeat after which another worker may claim its request."""
    pause: float = 1.0
    """Seconds between two looks at a store in which no request waits."""
    tries: int = TRIES
    """How often a request is tried at most, including tries that ended with a worker's death."""
    limit: float | None = None
    """Seconds that a request may take. One that takes longer is stopped, as a failed try; if it
    cannot be stopped, since it hangs in foreign code, its lease is no longer extended, and another
    worker claims it. None: as long as the process lives."""

    def __post_init__(self) -> None:
        for name in ("lease", "pause", "limit"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive seconds; got {value}")
        if self.tries < 1:
            raise ValueError(f"tries must be at least 1; got {self.tries}")


class WorkSummary(NamedTuple):
    """The outcomes of the requests that a worker claimed."""

    done: int
    """Answered."""
    failed: int
    """Failed for good, at the last try or since no try can succeed."""
    opened: int
    """Tries that failed and left the request open again."""
    dropped: int
    """Answers that came too late: another worker had the request, or the run went back and
    requested the evaluation again."""


ClaimedRequest = tuple[Request, RunRow | None, bool]
"""A request, its run (None if it was removed from the store just now), and whether the checkpoint
still exists, according to the store."""


def work(
    store: str | os.PathLike[str],
    suites: Suite | Sequence[Suite],
    settings: WorkerSettings = WorkerSettings(),
    *,
    idle: float | None = None,
    again: bool = False,
    runs: Sequence[str] = (),
) -> WorkSummary:
    """Answer evaluation requests: restore the checkpoint, evaluate it, and write the scores.

    Any number of workers may do so at once, on all machines that reach the store and see the runs'
    directories. A request belongs to one worker for as long as that lives and extends its lease;
    when it dies, another claims the request. Each request has one result. One that cannot succeed
    fails at once, with its error (the checkpoint is damaged, was removed or replaced, or does not
    fit the network); other failures are retried, a limited number of times. A store that is away is
    waited for.

    SIGTERM and SIGINT end it after the running request, a second one at once; the request is then
    open again.

    Args:
        store: directory of the runs, file or URL, see `trainer.runs.Store`; it must exist.
        suites: those that this worker answers for.
        settings: waits, tries and time limit.
        idle: end after so many seconds without a request, 0: as soon as nothing waits. None works
            until a signal arrives.
        again: first reopen all requests for these suites that have failed, as if they were new.
        runs: names of runs; first request the evaluation of all their existing checkpoints.

    Returns:
        The outcomes of the requests that it claimed.

    Raises:
        FileNotFoundError, Unreachable, ValueError: at the start, as `Store`.
        KeyError: no run has a name in `runs`.
        ValueError: two suites have one name.
        Exception: what a suite's phases raise on its own template, before anything is claimed.
        SystemExit, KeyboardInterrupt: on a signal.

    >>> import jax, jax.numpy as jnp, numpy as np, tempfile
    >>> from trainer import Checkpoints, TrainState, data, evaluation
    >>> from trainer.runs import Run, requests
    >>> source = data.Arrays({"inputs": np.arange(5.0)}, batch_size=2)
    >>> phase = evaluation(lambda state, batch: {"error": batch["inputs"] - state.params}, source)
    >>> state = TrainState.create(params=jnp.float32(1), rng=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Checkpoints(f"{folder}/one") as checkpoints:
    ...         checkpoints.save(state)
    ...     run = Run(f"{folder}/one")
    ...     requested = run.request_evaluation("errors", 0)
    ...     run.close()
    ...     print(work(folder, Suite("errors", state, phase), idle=0))
    ...     with Store(folder) as store:
    ...         print(requests.list_results(store, "one"))
    WorkSummary(done=1, failed=0, opened=0, dropped=0)
    {('errors', 0): {'val/error': 1.0}}
    """
    handler = RequestHandler((suites,) if isinstance(suites, Suite) else tuple(suites))
    client = StoreClient(resolve_store_url(store))
    client.open()
    with contextlib.closing(client), contextlib.closing(handler):
        for suite in handler.suites.values():
            suite.check()
        if again:
            log.info("reopened: %d", client.call(reopen_failed, tuple(handler.suites)))
        for run in runs:
            client.call(_request_all, run, tuple(handler.suites))
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        lease_keeper = LeaseKeeper(client.url, name, lease=settings.lease, limit=settings.limit)
        with catch_signals("this evaluation") as received, lease_keeper:
            worker = _Worker(name, handler, client, lease_keeper, received, settings)
            summary = worker.run(idle)
    log.info("worker %s ends: %s", name, summary)
    end_process(received.number)
    return summary


class _Worker(NamedTuple):
    """A worker and what it uses."""

    name: str
    handler: RequestHandler
    client: StoreClient
    lease_keeper: LeaseKeeper
    received: ReceivedSignal
    settings: WorkerSettings

    def run(self, idle: float | None) -> WorkSummary:
        """Answer requests until none waited for `idle` seconds, or a signal arrives."""
        log.info("worker %s waits for: %s", self.name, ", ".join(self.handler.suites))
        counts = dict.fromkeys(WorkSummary._fields, 0)
        pause, failures, since = self.settings.pause, 0, time.monotonic()
        suites, lease, tries = tuple(self.handler.suites), self.settings.lease, self.settings.tries
        while not self.is_stopped():
            claimed = self.call(_claim, self.name, suites, lease=lease, tries=tries)
            if claimed is None:
                if idle is not None and time.monotonic() - since >= idle:
                    break
                sleep_unless_stopped(pause, self.is_stopped)
                continue
            outcome = self.attempt(*claimed)
            if outcome is None:
                break
            counts[outcome] += 1
            # After a failure, perhaps this worker's own fault, leave the request to the others.
            failures = 0 if outcome == "done" else failures + (outcome == "opened")
            if outcome == "opened":
                wait = min(pause * 2 ** (failures - 1), MAX_PAUSE_SECONDS)
                sleep_unless_stopped(wait, self.is_stopped)
            since = time.monotonic()
        return WorkSummary(**counts)

    def attempt(self, request: Request, run: RunRow | None, present: bool) -> str | None:
        """Try a request, and return its outcome; None if a signal prevented writing that."""
        what = escape_text(f"epoch {request.epoch} of {request.run} by {request.suite}")
        log.info("evaluating %s", what)
        try:
            if run is None:
                raise UnanswerableRequest(f"run {request.run!r} is no longer recorded")
            with (
                self.lease_keeper.holding(request, f"evaluating {what}"),
                limit_time(self.settings.limit),
            ):
                result = self.handler.answer(request, run, present=present)
        except Exception as error:
            hopeless = isinstance(error, UnanswerableRequest)
            final = hopeless or request.tries >= self.settings.tries
            log.warning(
                "evaluating %s failed, at try %d, %s: %s",
                *(what, request.tries, "for good" if final else "and is open again"),
                error,
                exc_info=None if hopeless else error,
            )
            reason = "".join(traceback.format_exception_only(error)).strip()
            reason = str(error) if hopeless else reason
            written = self.call(fail_request, request, reason, final=final)
            if not written:
                return None if written is None else "dropped"
            return "failed" if final else "opened"
        except BaseException:
            with contextlib.suppress(Unreachable):  # else the lease expires
                self.client.call(fail_request, request, "its worker was interrupted", final=False)
            raise
        written = self.call(write_result, request, result)
        if written is None:
            return None
        if not written:
            log.warning("evaluating %s: dropped, it no longer belongs to this worker", what)
            return "dropped"
        log.info("evaluated %s: %s", what, result.scores)
        self.lease_keeper.count_answer()
        return "done"

    def call(self, do: Callable[..., Result], *arguments: Any, **settings: Any) -> Result | None:
        """Call the store, for as long as it takes; return None if a signal arrives first."""
        pause, stop = self.settings.pause, self.is_stopped
        return self.client.call_with_retry(do, *arguments, pause=pause, stop=stop, **settings)

    def is_stopped(self) -> bool:
        """Return whether a signal arrived."""
        return bool(self.received.number)


def _claim(
    store: Store, worker: str, suites: Sequence[str], *, lease: float, tries: int
) -> ClaimedRequest | None:
    request = claim_request(store, worker, suites, lease=lease, tries=tries)
    if request is None:
        return None
    run = next((row for row in store.runs() if row.name == request.run), None)
    present = {row.epoch for row in store.checkpoints(request.run, present=True)}
    return request, run, request.epoch in present


def _request_all(store: Store, run: str, suites: Sequence[str]) -> None:
    """Request the evaluation of all existing checkpoints of a run."""
    store.run(run)
    now = store.connection.now()
    with store.connection.transaction():
        for row in store.checkpoints(run, present=True):
            for suite in suites:
                create_request(store, run, row.epoch, suite, checksum=row.checksum, time=now)
