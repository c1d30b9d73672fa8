"""The worker: takes requests under a lease, answers them, and dies at any instant without harm."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from trainer.evaluators.lease import LeaseKeeper
from trainer.evaluators.request_handler import RequestHandler, write_result
from trainer.evaluators.requested_checkpoint import UnanswerableRequest
from trainer.evaluators.store_client import LONGEST, Given, StoreClient, sleep_unless_stopped
from trainer.evaluators.suite import Suite
from trainer.evaluators.time_limits import limit_time
from trainer.host.escaping import escape_text
from trainer.host.signals import Received, catch_signals, end_process
from trainer.runs.connections import Unreachable
from trainer.runs.requests import TRIES, claim, create_request, fail_request
from trainer.runs.rows import Request, RunRow
from trainer.runs.store import Store

log = logging.getLogger("entracte")


class WorkSummary(NamedTuple):
    """What became of the requests that a worker took."""

    done: int
    """Answered."""
    failed: int
    """Failed for good, at the last try or since no try can succeed."""
    opened: int
    """Tries that failed and left the request open again."""
    dropped: int
    """Answers that were not wanted any more: another worker had the request, or the run went back
    and asked anew."""


class ClaimedRequest(NamedTuple):
    """A request that was claimed, and what there is on record for it."""

    request: Request
    run: RunRow | None
    """None where it was removed from the store just now."""
    present: bool
    """Whether it is on record that the commit is still there."""


def work(
    store: str | os.PathLike[str],
    suites: Suite | Sequence[Suite],
    *,
    lease: float = 60.0,
    pause: float = 1.0,
    idle: float | None = None,
    tries: int = TRIES,
    limit: float | None = None,
    again: bool = False,
    runs: Sequence[str] = (),
) -> WorkSummary:
    """Answer evaluation requests: restore the commit, measure it, and write the scores.

    Any number of workers may do so at once, on all machines that reach the store and see the runs'
    directories. A request is one worker's for as long as that lives: a thread extends the lease. Of
    one that dies the lease runs out, and another takes the request; each has one result. What
    cannot succeed has failed at once, with its error (the commit is damaged, was removed or
    replaced, or is of another network); all else is tried again, a bounded number of times. A store
    that is away is waited for.

    SIGTERM and SIGINT end it after the running request, a second one at once; the request is then
    open again.

    Args:
        store: directory of the runs, file or URL, see `trainer.runs.Store`; it must be there.
        suites: those that this worker answers for.
        lease: seconds after which a request of a worker that gives no sign is another's.
        pause: seconds between two looks at a store in which nothing waits.
        idle: end where there was nothing to do for so many seconds, 0: as soon as nothing waits.
            None goes on until a signal comes.
        tries: how often a request is tried at most, those that a worker's death ended too.
        limit: seconds that a request may take. One that takes longer is broken off, as a try that
            failed; where that cannot be done, since it hangs in foreign code, its lease is extended
            no longer, and another worker takes it. None: as long as the process lives.
        again: first open all requests for these suites that have failed, as if they were new.
        runs: names of runs; first ask for all their commits that are there, if nobody did.

    Returns:
        What became of the requests that it took.

    Raises:
        FileNotFoundError, Unreachable, ValueError: at the start, as `Store`.
        KeyError: there is no run of a name in `runs`.
        ValueError: two suites have one name, or a setting is out of its range.
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
    ...     asked = run.create_request("errors", 0)
    ...     run.close()
    ...     print(work(folder, Suite("errors", state, phase), idle=0))
    ...     with Store(folder) as store:
    ...         print(requests.results(store, "one"))
    Worked(done=1, failed=0, opened=0, dropped=0)
    {('errors', 0): {'val/error': 1.0}}
    """
    for what, value in (("lease", lease), ("pause", pause), ("limit", limit)):
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{what} must be positive seconds; got {value}")
    if tries < 1:
        raise ValueError(f"tries must be at least 1; got {tries}")
    answering = RequestHandler((suites,) if isinstance(suites, Suite) else tuple(suites))
    link = StoreClient(store)
    with contextlib.closing(link), contextlib.closing(answering):
        for suite in answering.suites.values():
            suite.check()
        if again:
            log.info("opened again: %d", link.call(_reopened, tuple(answering.suites)))
        for run in runs:
            link.call(_ask_for_all, run, tuple(answering.suites))
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        with (
            catch_signals("this evaluation") as received,
            LeaseKeeper(link.url, name, lease=lease, limit=limit) as pulse,
        ):
            worker = _Worker(name, answering, link, pulse, received, lease, pause, tries, limit)
            worked = worker.run(idle)
    log.info("worker %s ends: %s", name, worked)
    end_process(received.number)
    return worked


class _Worker(NamedTuple):
    """What a worker has at hand while it works."""

    name: str
    answering: RequestHandler
    link: StoreClient
    pulse: LeaseKeeper
    received: Received
    lease: float
    pause: float
    tries: int
    limit: float | None

    def run(self, idle: float | None) -> WorkSummary:
        """Answer requests until nothing waited for `idle` seconds, or a signal came."""
        log.info("worker %s waits for: %s", self.name, ", ".join(self.answering.suites))
        counts = dict.fromkeys(WorkSummary._fields, 0)
        failures, since = 0, time.monotonic()
        while not self.stopped():
            settings = {"lease": self.lease, "tries": self.tries}
            suites = tuple(self.answering.suites)
            task = self.call_with_retry(_claim_request, self.name, suites, **settings)
            if task is None:
                if idle is not None and time.monotonic() - since >= idle:
                    break
                sleep_unless_stopped(self.pause, self.stopped)
                continue
            outcome = self.attempt(task)
            if outcome is None:
                break
            counts[outcome] += 1
            # One that fails, for a reason of its own perhaps, leaves the request to the others.
            failures = 0 if outcome == "done" else failures + (outcome == "opened")
            if outcome == "opened":
                sleep_unless_stopped(min(self.pause * 2 ** (failures - 1), LONGEST), self.stopped)
            since = time.monotonic()
        return WorkSummary(**counts)

    def attempt(self, task: ClaimedRequest) -> str | None:
        """Try a request, and settle what came of it; None where a signal kept it from that."""
        request = task.request
        what = (
            f"epoch {request.epoch} of {escape_text(request.run)} by {escape_text(request.suite)}"
        )
        log.info("evaluating %s", what)
        try:
            if task.run is None:
                raise UnanswerableRequest(f"run {request.run!r} is not on record any more")
            with self.pulse.holding(request, f"evaluating {what}"), limit_time(self.limit):
                answer = self.answering.answer(request, task.run, present=task.present)
        except Exception as error:
            final = isinstance(error, UnanswerableRequest) or request.tries >= self.tries
            log.warning(
                "evaluating %s failed, at try %d, %s: %s",
                *(what, request.tries, "for good" if final else "and is open again"),
                error,
                exc_info=None if isinstance(error, UnanswerableRequest) else error,
            )
            told = self.call_with_retry(fail_request, request, _told(error), final=final)
            if not told:
                return None if told is None else "dropped"
            return "failed" if final else "opened"
        except BaseException:
            with contextlib.suppress(Unreachable):  # or the lease runs out
                self.link.call(fail_request, request, "its worker was interrupted", final=False)
            raise
        settled = self.call_with_retry(write_result, request, answer)
        if settled is None:
            return None
        if not settled:
            log.warning("evaluating %s: dropped, it is not this worker's any more", what)
            return "dropped"
        log.info("evaluated %s: %s", what, answer.scores)
        self.pulse.answered()
        return "done"

    def call_with_retry(
        self, do: Callable[..., Given], *arguments: Any, **settings: Any
    ) -> Given | None:
        """Ask the store, for as long as it takes; None where a signal came first."""
        return self.link.call_with_retry(
            do, *arguments, pause=self.pause, stop=self.stopped, **settings
        )

    def stopped(self) -> bool:
        """Say whether a signal came."""
        return bool(self.received.number)


def _claim_request(
    store: Store, worker: str, suites: Sequence[str], *, lease: float, tries: int
) -> ClaimedRequest | None:
    """Claim a request, with what is on record for it."""
    request = claim(store, worker, suites, lease=lease, tries=tries)
    if request is None:
        return None
    run = next((row for row in store.runs() if row.name == request.run), None)
    present = {commit.epoch for commit in store.commits(request.run, present=True)}
    return ClaimedRequest(request, run, request.epoch in present)


def _reopened(store: Store, suites: Sequence[str]) -> int:
    """Open what has failed, and give how many requests that was."""
    opened = store.connection.execute(
        "UPDATE requests SET state = 'open', tries = 0, error = '', finished = NULL "
        f"WHERE state = 'failed' AND suite IN ({', '.join('?' * len(suites))}) RETURNING run",
        tuple(suites),
    )
    return len(opened)


def _ask_for_all(store: Store, run: str, suites: Sequence[str]) -> None:
    """Ask for the commits of a run that are there."""
    store.run(run)
    now = store.connection.now()
    with store.connection.transaction():
        for commit in store.commits(run, present=True):
            for suite in suites:
                create_request(store, run, commit.epoch, suite, checksum=commit.checksum, time=now)


def _told(error: Exception) -> str:
    if isinstance(error, UnanswerableRequest):
        return str(error)
    return "".join(traceback.format_exception_only(error)).strip()
