"""The best checkpoint of a run, by any recorded score."""

from __future__ import annotations

from typing import NamedTuple

from trainer.checkpoints.select import rank_by_score
from trainer.checks.modes import resolve_mode
from trainer.checks.suggestions import suggest_and_list
from trainer.runs.requests import list_requests, list_results
from trainer.runs.rows import CheckpointRow
from trainer.runs.store import Store


class BestCheckpoint(NamedTuple):
    """A checkpoint, and the score by which it is the best."""

    checkpoint: CheckpointRow
    value: float
    suite: str
    """Suite that measured the score; empty if training itself did."""


def best_checkpoint(
    store: Store, run: str, score: str, *, mode: str | None = None, suite: str | None = None
) -> BestCheckpoint:
    """Find the best checkpoint of a run among those that still exist.

    Scores are those saved in the checkpoints, which training measured, and those of suites.

    Args:
        store: to read.
        run: its name.
        score: its name, such as `val/loss`.
        mode: `min` if a smaller score is better, `max` if a larger is; None infers it.
        suite: whose score it is, "" for training's own; required if several have one of this name.

    Raises:
        KeyError: there is no such run.
        ValueError: no existing checkpoint has the score, or several suites measured it; or the mode
            is unknown, or cannot be inferred from the name.

    >>> import tempfile
    >>> from trainer.runs import CheckpointRow, Store
    >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
    ...     store.register("digits", directory="/d", host="here", pid=1, time=0.0)
    ...     for epoch, loss in ((1, 0.5), (2, 0.25), (3, 0.75)):
    ...         row = CheckpointRow(epoch, f"/d/{epoch}", 8, {"val/loss": loss}, "x", "2025-01-01")
    ...         store.write_checkpoint("digits", row)
    ...     best = best_checkpoint(store, "digits", "val/loss")
    ...     best.checkpoint.epoch, best.value
    (2, 0.25)
    """
    direction = resolve_mode("best_checkpoint", score, mode)
    store.run(run)
    existing = {row.epoch: row for row in store.checkpoints(run, present=True)}
    found = _read_scores(store, run, existing)
    sources = [
        name
        for name, scores in found.items()
        if suite in (None, name) and any(score in one for one in scores.values())
    ]
    if len(sources) > 1:
        named = ", ".join(repr(name) for name in sources)
        raise ValueError(
            f"{score!r} of run {run!r} was measured by {named} ('': by training itself): say whose "
            "is meant, suite=..."
        )
    values = {e: s[score] for e, s in found[sources[0]].items() if score in s} if sources else {}
    order = rank_by_score(values, direction)
    if not order:
        known = sorted({n for scores in found.values() for one in scores.values() for n in one})
        raise ValueError(
            f"no checkpoint of run {run!r} that still exists has a score {score!r}"
            + (f" of suite {suite!r}" if suite is not None else "")
            + f" that is a number{suggest_and_list(score, known)}"
        )
    return BestCheckpoint(existing[order[0]], values[order[0]], sources[0])


def _read_scores(
    store: Store, run: str, existing: dict[int, CheckpointRow]
) -> dict[str, dict[int, dict[str, float]]]:
    """Return the scores of existing checkpoints, by suite ("" for training) and epoch."""
    found = {"": {epoch: row.scores for epoch, row in existing.items()}}
    checksums = {(one.suite, one.epoch): one.checksum for one in list_requests(store, run)}
    for (suite, epoch), scores in list_results(store, run).items():
        row = existing.get(epoch)
        if row is not None and checksums.get((suite, epoch)) == row.checksum:
            found.setdefault(suite, {})[epoch] = scores
    return found
