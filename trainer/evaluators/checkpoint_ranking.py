"""The best checkpoint of a run, by any score that is on record."""

from __future__ import annotations

from typing import NamedTuple

from trainer.checkpoints.publishing import rank_by_score
from trainer.checks.modes import resolve_mode
from trainer.checks.suggestions import suggest_and_list
from trainer.runs.requests import list_requests, list_results
from trainer.runs.rows import CheckpointRow
from trainer.runs.store import Store


class Best(NamedTuple):
    """A checkpoint, and the score by which it is the best."""

    commit: CheckpointRow
    value: float
    suite: str
    """That found the score; empty where training itself did."""


def best_commit(
    store: Store, run: str, score: str, *, mode: str | None = None, suite: str | None = None
) -> Best:
    """Find the best checkpoint of a run among those that are still there.

    Scores are those of the commits themselves, as training knew them, and those that suites found.

    Args:
        store: to look in.
        run: its name.
        score: its name, such as `val/loss`.
        mode: `min` if a smaller score is better, `max` if a larger is; None goes by its name.
        suite: whose score it is, "" for training's own; needed where several have one of this name.

    Raises:
        KeyError: there is no such run.
        ValueError: no checkpoint that is there has the score, or several have found it; or an
            unknown mode, or one that the name does not tell.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
    ...     store.register("digits", directory="/d", host="here", pid=1, time=0.0)
    ...     for epoch, loss in ((1, 0.5), (2, 0.25), (3, 0.75)):
    ...         store.write_commit("digits", CheckpointRow(epoch, f"/d/{epoch}", 8,
    ...     {"val/loss": loss},
    ...                                                str(epoch), "2025-01-01"))
    ...     best = best_commit(store, "digits", "val/loss")
    ...     best.commit.epoch, best.value
    (2, 0.25)
    """
    way = resolve_mode("best_commit", score, mode)
    store.run(run)
    there = {commit.epoch: commit for commit in store.commits(run, present=True)}
    found = _scores(store, run, there)
    finders = [
        name for name, scores in found.items() if any(score in one for one in scores.values())
    ]
    if suite is not None:
        finders = [name for name in finders if name == suite]
    if len(finders) > 1:
        named = ", ".join(repr(name) for name in finders)
        raise ValueError(
            f"{score!r} of run {run!r} was found by {named} ('': by training itself): say whose is "
            "meant, suite=..."
        )
    values = {e: s[score] for e, s in found[finders[0]].items() if score in s} if finders else {}
    order = rank_by_score(values, way)
    if not order:
        known = sorted({n for scores in found.values() for one in scores.values() for n in one})
        raise ValueError(
            f"no commit of run {run!r} that is still there has a score {score!r}"
            + (f" of suite {suite!r}" if suite is not None else "")
            + f" that is a number{suggest_and_list(score, known)}"
        )
    return Best(there[order[0]], values[order[0]], finders[0])


def _scores(
    store: Store, run: str, there: dict[int, CheckpointRow]
) -> dict[str, dict[int, dict[str, float]]]:
    """Give who found scores ("": training) to epoch to scores, of the commits that are there."""
    found = {"": {epoch: commit.scores for epoch, commit in there.items()}}
    asked = {(r.suite, r.epoch): r.checksum for r in list_requests(store, run)}
    for (suite, epoch), scores in list_results(store, run).items():
        commit = there.get(epoch)
        if commit is not None and asked.get((suite, epoch)) == commit.checksum:
            found.setdefault(suite, {})[epoch] = scores
    return found
