"""Answers to evaluation requests, as the run that asked looks for them."""

from __future__ import annotations

import math
from typing import NamedTuple

from trainer.runs.store import Store


class Answer(NamedTuple):
    """What became of the evaluation of a checkpoint."""

    epoch: int
    checksum: str
    """Of the checkpoint that was evaluated."""
    error: str | None
    """What it failed of, in the end; None where it did not."""
    scores: dict[str, float]


def list_answers(store: Store, run: str, suite: str, *, after: int) -> list[Answer]:
    """Give what evaluations by a suite came to, by epoch; those that go on are left out.

    Args:
        store: to look in.
        run: whose checkpoints they are of.
        suite: name of the suite.
        after: an epoch; only checkpoints of later ones count.
    """
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
