"""Evaluation requests: asked for once, claimed under a lease, answered once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer.runs.rows import Request
from trainer.runs.store import Store
from trainer.runs.text import shorten_name

TRIES = 5
"""How often a request is tried at most."""

_COLUMNS = ", ".join(Request._fields)


def create_request(
    store: Store, run: str, epoch: int, suite: str, *, checksum: str, time: float
) -> None:
    """Ask for a checkpoint to be evaluated; to ask again for the same one changes nothing.

    Args:
        store: to ask in.
        run: whose checkpoint it is.
        epoch: of the checkpoint.
        suite: name of the suite.
        checksum: of the commit's manifest. Another one than before, since the epoch was trained
            anew, asks anew.
        time: when, unix seconds.
    """
    key = (run, epoch, shorten_name(suite))
    values = (*key, checksum, "open", time, 0, "", 0.0, None, "")
    with store.connection.transaction():
        if store.connection.execute(
            f"INSERT INTO requests ({_COLUMNS}) VALUES ({', '.join('?' * len(values))}) "
            "ON CONFLICT (run, epoch, suite) DO UPDATE SET "
            + ", ".join(f"{column} = excluded.{column}" for column in Request._fields[3:])
            + " WHERE requests.checksum <> excluded.checksum RETURNING run",
            values,
        ):
            store.connection.execute(
                "DELETE FROM results WHERE run = ? AND epoch = ? AND suite = ?", key
            )


def claim(
    store: Store, worker: str, suites: Sequence[str], *, lease: float, tries: int = TRIES
) -> Request | None:
    """Take the oldest request that is open, or whose worker's lease ran out.

    Args:
        store: to look in.
        worker: name of the claimant, unique among all.
        suites: names of those that it can run.
        lease: seconds for which the request is its own; see `extend`.
        tries: how often a request is tried at most; then it has failed.

    Returns:
        The request; None where there is none.
    """
    if not suites:
        return None
    now = store.connection.now()
    chosen = f"suite IN ({', '.join('?' * len(suites))})"
    waiting = f"{chosen} AND (state = 'open' OR (state = 'claimed' AND lease < ?))"
    with store.connection.transaction():
        store.connection.execute(
            "UPDATE requests SET state = 'failed', finished = ?, error = CASE WHEN error = '' "
            "THEN 'each of its workers died or hung' ELSE error END "
            f"WHERE {waiting} AND tries >= ?",
            (now, *suites, now, tries),
        )
        found = store.connection.execute(
            f"SELECT run, epoch, suite FROM requests WHERE {waiting} "
            f"ORDER BY asked, run, epoch, suite LIMIT 1 {store.connection.skipping}",
            (*suites, now),
        )
        taken = [
            row
            for key in found
            for row in store.connection.execute(
                "UPDATE requests SET state = 'claimed', worker = ?, lease = ?, tries = tries + 1 "
                f"WHERE run = ? AND epoch = ? AND suite = ? RETURNING {_COLUMNS}",
                (worker, now + lease, *key),
            )
        ]
    return Request._make(taken[0]) if taken else None


def extend(store: Store, request: Request, *, lease: float) -> bool:
    """Keep a request for so many seconds from now; False where another has taken it."""
    return _change(store, request, "lease = ?", (store.connection.now() + lease,))


def finish(store: Store, request: Request, scores: Mapping[str, float]) -> bool:
    """Answer a request; False, and nothing is written, where another has taken it."""
    with store.connection.transaction():
        changes = "state = 'done', finished = ?, error = ''"
        if not _change(store, request, changes, (store.connection.now(),)):
            return False
        store.connection.many(
            "INSERT INTO results (run, epoch, suite, name, value) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (run, epoch, suite, name) DO UPDATE SET value = excluded.value",
            [
                (*request[:3], shorten_name(name), None if value != value else float(value))
                for name, value in scores.items()
            ],
        )
    return True


def fail_request(store: Store, request: Request, error: str, *, final: bool) -> bool:
    """Note that a try failed; unless it is `final`, the request is open again."""
    changes = "state = ?, finished = ?, error = ?, lease = 0"
    state, ended = ("failed", store.connection.now()) if final else ("open", None)
    return _change(store, request, changes, (state, ended, error))


def list_requests(store: Store, run: str | None = None) -> list[Request]:
    """Give the requests of a run, or all, the oldest first."""
    rows = store.connection.execute(
        f"SELECT {_COLUMNS} FROM requests WHERE ? = '' OR run = ? "
        "ORDER BY asked, run, epoch, suite",
        (run or "", run or ""),
    )
    return [Request._make(row) for row in rows]


def list_results(store: Store, run: str) -> dict[tuple[str, int], dict[str, float]]:
    """Give what evaluators found of a run: (suite, epoch) to scores by name."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for suite, epoch, name, value in store.connection.execute(
        "SELECT suite, epoch, name, value FROM results WHERE run = ? ORDER BY epoch, suite, name",
        (run,),
    ):
        found.setdefault((suite, epoch), {})[name] = float("nan") if value is None else value
    return found


def _change(store: Store, request: Request, changes: str, values: tuple[object, ...]) -> bool:
    """Change a request that is still its worker's; say whether it was."""
    return bool(
        store.connection.execute(
            f"UPDATE requests SET {changes} WHERE run = ? AND epoch = ? AND suite = ? AND "
            "state = 'claimed' AND worker = ? AND tries = ? AND checksum = ? RETURNING run",
            (*values, *request[:3], request.worker, request.tries, request.checksum),
        )
    )
