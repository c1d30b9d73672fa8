"""Which checkpoints of a run are intact, as far as is known, and the score that ranks each."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.checkpoints import manifest as manifests
from trainer.checkpoints import publishing, select
from trainer.checkpoints.storage.run_paths import RunPath


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

        found = select.read_intact(self._folder, self.list_intact, read, self.leave_out)
        return {number: scores.get(self._best) for number, scores in found.items()}
