"""Select checkpoints of a run that may be active: the newest, the best, the intact ones."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from trainer.checkpoints import manifest as manifests
from trainer.checkpoints import publishing
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.publishing import Stamp, read_stamp
from trainer.checkpoints.save_worker import wait_for_saves
from trainer.checkpoints.storage.bucket_path import BucketPath
from trainer.checkpoints.storage.disk_checkpoints import check_no_link
from trainer.checkpoints.storage.run_paths import RunPath, to_run_path
from trainer.checks.modes import Mode, resolve_mode
from trainer.checks.paths import to_absolute_path
from trainer.checks.suggestions import suggest_and_list

log = logging.getLogger("entracte")

Found = TypeVar("Found")


def get_checkpoint_folder(directory: str | os.PathLike[str] | BucketPath) -> RunPath:
    """Return the folder of a run's checkpoints; raise NotADirectoryError if it is a link."""
    run = to_run_path(directory, "a run")
    return run / "checkpoints" if isinstance(run, BucketPath) else get_local_checkpoint_folder(run)


def get_local_checkpoint_folder(directory: str | os.PathLike[str]) -> Path:
    """Return the folder of the checkpoints of a run on a disk, as `get_checkpoint_folder`."""
    folder = to_absolute_path(directory, "a run") / "checkpoints"
    check_no_link(folder)
    return folder


def iterate_checkpoints(
    folder: RunPath, list_numbers: Callable[[], Sequence[int]], read: Callable[[int], Found]
) -> Iterator[tuple[int, Stamp | None, Found | DamagedCheckpoint]]:
    """Read checkpoints in the order listed, and yield number, stamp and content or damage of each.

    A checkpoint that the run removes or replaces while it is read is not damaged: the folder is
    listed again then. None is yielded twice.

    Args:
        folder: of the checkpoints.
        list_numbers: lists the numbers to read, in order: those that are there now.
        read: reads the content of one, or raises DamagedCheckpoint.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for number in (1, 2):
    ...         Path(folder, str(number)).mkdir()
    ...     found = iterate_checkpoints(Path(folder), lambda: [2, 1], lambda number: number * 10)
    ...     [(number, content) for number, stamp, content in found]
    [(2, 20), (1, 10)]
    """
    done: dict[int, Stamp | None] = {}
    gone: set[int] = set()
    numbers = [*list_numbers()]
    while numbers:
        number = numbers.pop(0)
        stamp = read_stamp(folder, number)
        if number in done and done[number] == stamp:
            continue
        content: Found | DamagedCheckpoint
        try:
            content = read(number)
        except DamagedCheckpoint as damage:
            listed_without_one = stamp is None and number in gone
            if not listed_without_one and (stamp is None or read_stamp(folder, number) != stamp):
                gone |= {number} if stamp is None else set()
                numbers = [*list_numbers()]
                continue
            content = damage
        done[number] = stamp
        yield number, stamp, content


def read_first_intact(
    folder: RunPath, list_numbers: Callable[[], Sequence[int]], read: Callable[[int], Found]
) -> Found | None:
    """Read the first intact checkpoint of those listed; None if none is.

    Each damaged one that is skipped is logged. The arguments are those of `iterate_checkpoints`.

    Raises:
        DamagedCheckpoint: none is intact.
    """
    damages: list[DamagedCheckpoint] = []
    for _, _, content in iterate_checkpoints(folder, list_numbers, read):
        if not isinstance(content, DamagedCheckpoint):
            log_skipped(*damages)
            return content
        damages.append(content)
    if len(damages) == 1:
        raise damages[0]
    log_skipped(*damages)
    if damages:
        raise DamagedCheckpoint("no checkpoint is intact:\n  " + "\n  ".join(map(str, damages)))
    return None


def read_intact(
    folder: RunPath,
    list_numbers: Callable[[], Sequence[int]],
    read: Callable[[int], Found],
    leave_out: Callable[[int], None] = lambda number: None,
) -> dict[int, Found]:
    """Read all intact checkpoints, by number; log each damaged one, and leave it out."""
    intact: dict[int, Found] = {}
    for number, _, content in iterate_checkpoints(folder, list_numbers, read):
        if isinstance(content, DamagedCheckpoint):
            log_skipped(content)
            leave_out(number)
        else:
            intact[number] = content
    return intact


def log_skipped(*damages: DamagedCheckpoint) -> None:
    """Log that damaged checkpoints are skipped."""
    for damage in damages:
        log.warning(f"skipped a damaged checkpoint: {damage}")


def list_candidates(
    folder: RunPath, epoch: int | None, best: str | None, mode: str | None
) -> Sequence[int]:
    """List the checkpoints that a reader asks for, the preferred one first.

    Args:
        folder: of the checkpoints.
        epoch: the only one to take.
        best: the score by which they are ranked; None lists the newest first.
        mode: `min` if a smaller score is better, `max` if a larger is; None infers it by name.

    Raises:
        FileNotFoundError: there is none, or none of this epoch.
        ValueError: the settings contradict each other, or no checkpoint has the score.
    """
    way = resolve_mode("best", best, mode, optional=True)
    if epoch is not None and best is not None:
        raise ValueError(f"give an epoch or best, not both; got {epoch} and {best!r}")
    wait_for_saves()
    numbers = publishing.list_epochs(folder)
    if not numbers:
        raise FileNotFoundError(
            f"there is no checkpoint in {folder}: give the directory of a run that was saved, as "
            "save_checkpoints was given it"
        )
    if epoch is not None:
        return check_listed(folder, epoch, numbers)
    if best is None:
        return numbers[::-1]
    scores = read_intact(
        folder,
        lambda: publishing.list_epochs(folder),
        lambda number: manifests.parse_scores(publishing.read_manifest(folder, number)),
    )
    ranked = rank_by_score({number: found.get(best) for number, found in scores.items()}, way)
    if not ranked:
        known = sorted({name for found in scores.values() for name in found})
        raise ValueError(
            f"no checkpoint in {folder} has a score {best!r} that is a "
            f"number{suggest_and_list(best, known)}"
        )
    return ranked


def check_listed(folder: RunPath, epoch: int, numbers: Sequence[int]) -> list[int]:
    """Return the one number of this epoch; FileNotFoundError lists those that there are."""
    if epoch not in numbers:
        raise FileNotFoundError(
            f"there is no checkpoint of epoch {epoch} in {folder}; there are: {numbers}"
        )
    return [epoch]


def rank_by_score(scores: Mapping[int, float | None], mode: Mode) -> list[int]:
    """Order checkpoints from the best score to the worst, without those that have none, or nan.

    >>> rank_by_score({1: 0.5, 2: float("nan"), 3: 0.25, 4: None}, "min")
    [3, 1]
    """
    known = {n: score for n, score in scores.items() if score is not None and not math.isnan(score)}
    return sorted(known, key=lambda n: (known[n] if mode == "min" else -known[n], n))
