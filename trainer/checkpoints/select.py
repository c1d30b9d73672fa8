"""Choosing among the commits of a run that may be going on: the newest, the best, an intact one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from trainer.checkpoints import manifest as manifests
from trainer.checkpoints import publishing
from trainer.checkpoints.manifest import DamagedCheckpoint
from trainer.checkpoints.save_worker import wait_for_saves
from trainer.checks.modes import resolve_mode
from trainer.checks.paths import to_absolute_path
from trainer.checks.suggestions import suggest_and_list

log = logging.getLogger("entracte")

Found = TypeVar("Found")

Stamp = tuple[int, int]
"""Of a commit's folder, which is renamed into place when it is whole: another one has another."""


def read_stamp(folder: Path, number: int) -> Stamp | None:
    """Tell a commit from another of its number; None if it is gone."""
    try:
        status = (folder / str(number)).lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def get_checkpoint_folder(directory: str | os.PathLike[str]) -> Path:
    """Give the folder of a run's commits.

    Raises:
        NotADirectoryError: it is a link.
    """
    folder = to_absolute_path(directory, "a run") / "checkpoints"
    publishing.check_no_link(folder)
    return folder


def list_candidates(
    folder: Path, epoch: int | None, best: str | None, mode: str | None
) -> Sequence[int]:
    """Order the commits that would do, the one to take if it is intact first.

    Args:
        folder: of the commits.
        epoch: the only one that would do.
        best: the score by which they are compared; the newest is the first otherwise.
        mode: `min` if a smaller score is better, `max` if a larger is; None goes by its name.

    Raises:
        FileNotFoundError: there is none, or none of this epoch.
        ValueError: the settings make no sense, or no commit has the score.
    """
    way = resolve_mode("best", best, mode, optional=True)
    if epoch is not None and best is not None:
        raise ValueError(f"give an epoch or best, not both; got {epoch} and {best!r}")
    wait_for_saves()
    numbers = publishing.list_epochs(folder)
    if not numbers:
        raise FileNotFoundError(
            f"there is no commit in {folder}: give the directory of a run that was saved, as "
            "save_checkpoints was given it"
        )
    if epoch is not None:
        if epoch not in numbers:
            raise FileNotFoundError(
                f"there is no commit of epoch {epoch} in {folder}; there are: {numbers}"
            )
        return [epoch]
    if best is None:
        return numbers[::-1]
    scores: dict[int, Mapping[str, float]] = {}
    for number in numbers:
        try:
            scores[number] = manifests.parse_scores(publishing.read_manifest(folder, number))
        except DamagedCheckpoint as damage:
            if read_stamp(folder, number):  # or the run removed it meanwhile
                log.warning(f"skipped a damaged commit: {damage}")
    ranked = publishing.rank_by_score(
        {number: found.get(best) for number, found in scores.items()}, way
    )
    if not ranked:
        known = sorted({name for found in scores.values() for name in found})
        raise ValueError(
            f"no commit in {folder} has a score {best!r} that is a "
            f"number{suggest_and_list(best, known)}"
        )
    return ranked


def read_first_intact(
    folder: Path, candidates: Callable[[], Sequence[int]], read: Callable[[int], Found]
) -> Found:
    """Read the first commit that is intact; damaged ones are skipped with a warning.

    Where the run removed or replaced one while it was read, that was no damage: choose anew.

    Args:
        folder: of the commits.
        candidates: gives their numbers, in the order to try them.
        read: gives what is wanted of a commit, or raises DamagedCommit.

    Raises:
        DamagedCommit: none is intact.
    """
    numbers, reasons = [*candidates()], list[str]()
    while numbers:
        number = numbers.pop(0)
        before = read_stamp(folder, number)
        try:
            return read(number)
        except DamagedCheckpoint as damage:
            if before is None or read_stamp(folder, number) != before:
                numbers, reasons = [*candidates()], []
                continue
            if not numbers and not reasons:
                raise
            log.warning(f"skipped a damaged commit: {damage}")
            reasons.append(str(damage))
    raise DamagedCheckpoint("no commit is intact:\n  " + "\n  ".join(reasons))
