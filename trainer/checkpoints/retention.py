"""Which checkpoints are kept and which are pruned: the newest, the best and every n-th stay."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from trainer.checkpoints import publishing, run_id
from trainer.checkpoints.select import rank_by_score
from trainer.checkpoints.storage.bucket_checkpoints import NamedData
from trainer.checkpoints.storage.run_paths import RunPath
from trainer.checks.arguments import require_integer
from trainer.checks.modes import Mode

log = logging.getLogger("entracte")


@dataclass(frozen=True)
class Retention:
    """Which checkpoints to keep: so many of the newest and the best, and every n-th number."""

    keep: int
    keep_best: int
    every: int | None
    mode: Mode

    def __post_init__(self) -> None:
        for name in ("keep", "keep_best", "every"):
            if (value := getattr(self, name)) is not None:
                require_integer(name, value, 1)


def select_retained(scores: Mapping[int, float | None], retention: Retention) -> Collection[int]:
    """Select the checkpoints to keep: the newest, the best, and every n-th.

    >>> scores = {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.9, 5: 0.8}
    >>> sorted(select_retained(scores, Retention(keep=1, keep_best=1, every=4, mode="min")))
    [1, 4, 5]
    """
    newest = sorted(scores)[-retention.keep :]
    best = rank_by_score(scores, retention.mode)[: retention.keep_best]
    return {*newest, *best, *(n for n in scores if retention.every and n % retention.every == 0)}


def prune(
    folder: RunPath,
    scores: Mapping[int, float | None],
    retention: Retention,
    newest: int,
    written: Collection[int],
    named: NamedData,
) -> None:
    """Remove the intact checkpoints, the keys of `scores`, that are not kept.

    `newest` was just written and stays. One that this process has not `written` itself is removed
    only if it is of this run. `named` tells what data in a bucket other checkpoints refer to.
    """
    for number in scores.keys() - select_retained(scores, retention) - {newest}:
        if number in written or run_id.may_remove(folder, number):
            publishing.remove_checkpoint(folder, number, named)
    if later := [number for number in scores if number > newest]:
        log.warning(
            f"epoch {newest} was saved to {folder}, where {later} come before it when restoring: "
            "move them away if training is to continue from here"
        )
