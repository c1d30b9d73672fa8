"""Evaluation requests and their results: created once, claimed under a lease, answered once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trainer.runs.rows import Request
from trainer.runs.sql.connection import placeholders, upsert
from trainer.runs.store import Store
from trainer.runs.text import shorten_name

TRIES = 5
"""How often a request is tried at most."""

_COLUMNS = ", ".join(Request._fields)
_KEY = ("run", "epoch", "suite")
_IS_KEY = "run = ? AND epoch = ? AND suite = ?"
_IS_TRY = f"{_IS_KEY} AND worker = ? AND tries = ? AND checksum = ?"


class Answer(NamedTuple):
    """The outcome of evaluating a checkpoint."""

    epoch: int
    checksum: str
    """Of the checkpoint that was evaluated."""
    error: str | None
    """Why it failed for good; None if it did not."""
    scores: dict[str, float]


def create_request(
    store: Store, run: str, epoch: int, suite: str, *, checksum: str, time: float
) -> None:
    """Request the evaluation of a checkpoint, at a time in unix seconds.

    A second request for the same one changes nothing. A checksum that differs from the recorded
    one, since the epoch was trained again, opens the request again.
    """
    key = (run, epoch, shorten_name(suite))
    values = (*key, checksum, "open", time, 0, "", 0.0, None, "")
    with store.connection.transaction():
        if store.connection.execute(
            upsert("requests", Request._fields, _KEY)
            + " WHERE requests.checksum <> excluded.checksum RETURNING run",
            values,
        ):
            store.connection.execute(f"DELETE FROM results WHERE {_IS_KEY}", key)


def claim_request(
    store: Store, worker: str, suites: Sequence[str], *, lease: float, tries: int = TRIES
) -> Request | None:
    """Claim the oldest request that is open, or whose worker's lease has expired; None if none is.

    Args:
        store: to read.
        worker: unique name of the claimant.
        suites: that it can run.
        lease: seconds for which the request belongs to it; see `extend_lease`.
        tries: after so many a request has failed.
    """
    if not suites:
        return None
    now = store.connection.now()
    waiting = (
        f"suite IN ({placeholders(suites)}) "
        "AND (state = 'open' OR (state = 'claimed' AND lease < ?))"
    )
    with store.connection.transaction():
        store.connection.execute(
            "UPDATE requests SET state = 'failed', finished = ?, error = CASE WHEN error = '' "
            "THEN 'each of its workers died or hung' ELSE error END "
            f"WHERE {waiting} AND tries >= ?",
            (now, *suites, now, tries),
        )
        found = store.connection.execute(
            f"SELECT run, epoch, suite FROM requests WHERE {waiting} "
            f"ORDER BY asked, run, epoch, suite LIMIT 1 {store.connection.skip_locked}",
            (*suites, now),
        )
        if not found:
            return None
        (claimed,) = store.connection.execute(
            "UPDATE requests SET state = 'claimed', worker = ?, lease = ?, tries = tries + 1 "
            f"WHERE {_IS_KEY} RETURNING {_COLUMNS}",
            (worker, now + lease, *found[0]),
        )
    return Request._make(claimed)


def extend_lease(store: Store, request: Request, *, lease: float) -> bool:
    """Extend a claim to so many seconds from now; return False if another worker has it."""
    return _update(store, request, "lease = ?", (store.connection.now() + lease,))


def finish_request(store: Store, request: Request, scores: Mapping[str, float]) -> bool:
    """Write the scores of a request; return False, and write nothing, if another worker has it."""
    with store.connection.transaction():
        changes = "state = 'done', finished = ?, error = ''"
        if not _update(store, request, changes, (store.connection.now(),)):
            return False
        store.connection.execute_many(
            upsert("results", (*_KEY, "name", "value"), (*_KEY, "name")),
            [
                (*request[:3], shorten_name(name), None if value != value else float(value))
                for name, value in scores.items()
            ],
        )
    return True


def is_finished(store: Store, request: Request) -> bool:
    """Return whether this very try was finished, by a call whose confirmation was lost."""
    statement = f"SELECT 1 FROM requests WHERE {_IS_TRY} AND state = 'done'"
    return bool(store.connection.execute(statement, _identify_try(request)))


def fail_request(store: Store, request: Request, error: str, *, final: bool) -> bool:
    """Record that a try failed; unless it is `final`, the request is open again."""
    changes = "state = ?, finished = ?, error = ?, lease = 0"
    state, finished = ("failed", store.connection.now()) if final else ("open", None)
    return _update(store, request, changes, (state, finished, error))


def reopen_failed(store: Store, suites: Sequence[str]) -> int:
    """Open the requests for suites that have failed, and return how many these were."""
    statement = (
        "UPDATE requests SET state = 'open', tries = 0, error = '', finished = NULL "
        f"WHERE state = 'failed' AND suite IN ({placeholders(suites)}) RETURNING run"
    )
    return len(store.connection.execute(statement, tuple(suites)))


def list_requests(store: Store, run: str | None = None) -> list[Request]:
    """Return the requests of a run, or all, the oldest first."""
    rows = store.connection.execute(
        f"SELECT {_COLUMNS} FROM requests WHERE ? = '' OR run = ? "
        "ORDER BY asked, run, epoch, suite",
        (run or "", run or ""),
    )
    return [Request._make(row) for row in rows]


def list_results(store: Store, run: str) -> dict[tuple[str, int], dict[str, float]]:
    """Return the scores that evaluators measured of a run: (suite, epoch) to scores by name."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for suite, epoch, name, value in store.connection.execute(
        "SELECT suite, epoch, name, value FROM results WHERE run = ? ORDER BY epoch, suite, name",
        (run,),
    ):
        found.setdefault((suite, epoch), {})[name] = math.nan if value is None else value
    return found


def list_answers(store: Store, run: str, suite: str, *, after: int) -> list[Answer]:
    """Return the outcomes of finished evaluations by a suite, of later epochs than `after`."""
    found: dict[int, Answer] = {}
    for epoch, checksum, state, error, name, value in store.connection.execute(
        "SELECT q.epoch, q.checksum, q.state, q.error, r.name, r.value FROM requests AS q "
        "LEFT JOIN results AS r ON r.run = q.run AND r.epoch = q.epoch AND r.suite = q.suite "
        "WHERE q.run = ? AND q.suite = ? AND q.epoch > ? AND q.state IN ('done', 'failed') "
        "ORDER BY q.epoch, r.name",
        (run, suite, after),
    ):
        reason = error if state == "failed" else None
        answer = found.setdefault(epoch, Answer(epoch, checksum, reason, {}))
        if name is not None:
            answer.scores[name] = math.nan if value is None else value
    return list(found.values())


def _update(store: Store, request: Request, changes: str, values: tuple[object, ...]) -> bool:
    """Change a request if its worker still has it; return whether it had."""
    statement = f"UPDATE requests SET {changes} WHERE {_IS_TRY} AND state = 'claimed' RETURNING run"
    return bool(store.connection.execute(statement, (*values, *_identify_try(request))))


def _identify_try(request: Request) -> tuple[object, ...]:
    return (*request[:3], request.worker, request.tries, request.checksum)
