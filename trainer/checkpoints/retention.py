"""Which intact checkpoints are kept and which pruned: the newest, the best and every n-th stay."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from trainer.checkpoints import manifest as manifests
from trainer.checkpoints import publishing, run_id
from trainer.checkpoints.select import rank_by_score, read_intact
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


class Catalog:
    """The checkpoints in a folder without those found damaged; each manifest is read once.

    Args:
        folder: of the checkpoints.
        best: the score that ranks checkpoints; None if none does.
        read_only: a damaged one is not left out: the run may replace it.
    """

    def __init__(self, folder: RunPath, best: str | None, *, read_only: bool) -> None:
        self._folder, self._best, self._read_only = folder, best, read_only
        self._damaged: set[int] = set()
        self._scores: dict[int, Mapping[str, float]] = {}

    def list_intact(self) -> list[int]:
        """List the numbers of the complete checkpoints that were not left out, ascending."""
        numbers = publishing.list_complete_epochs(self._folder)
        return [number for number in numbers if number not in self._damaged]

    def leave_out(self, number: int) -> None:
        """Leave out a damaged checkpoint from now on, but for readers: it may be replaced."""
        if not self._read_only:
            self._damaged.add(number)

    def add(self, number: int, scores: Mapping[str, float] | None = None) -> None:
        """List a checkpoint again, which is intact; with scores if it was just written."""
        self._damaged.discard(number)
        if scores is not None:
            self._scores[number] = scores

    def read_scores(self) -> dict[int, float | None]:
        """Read the score that ranks each intact checkpoint; None if it has none."""
        if self._best is None:
            return dict.fromkeys(self.list_intact())

        def read(number: int) -> Mapping[str, float]:
            if number not in self._scores:
                manifest = publishing.read_manifest(self._folder, number)
                self._scores[number] = manifests.parse_scores(manifest)
            return self._scores[number]

        found = read_intact(self._folder, self.list_intact, read, self.leave_out)
        return {number: scores.get(self._best) for number, scores in found.items()}


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
