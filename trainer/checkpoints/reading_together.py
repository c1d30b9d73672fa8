"""Read one checkpoint on all processes: in step, so that damage seen by one is skipped by all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.storage.run_paths import RunPath
from trainer.host.processes import gather_values, is_main_process

Found = TypeVar("Found")

_INTACT, _DAMAGED, _ERROR = 0, 1, 2
"""What became of an attempt to read a checkpoint."""

_FINISHED, _FAILED = -1, -2
"""What the main process announces in place of a number."""


def read_together(
    where: RunPath,
    choose: Callable[[Callable[[int], Found]], Found | None],
    read: Callable[[int], Found],
    identify: Callable[[Found], tuple[int, int]],
) -> Found | None:
    """Choose a checkpoint on the main process, and read it on all; all must call it.

    Args:
        where: the folder of the checkpoints, for messages.
        choose: `(read) -> found`, such as `read_first_intact`: calls `read` with one number after
            another until it returns; only the main process calls it.
        read: reads a checkpoint, or what this process needs of it.
        identify: returns its number and its digest.

    Returns:
        What `choose` returned, or None.

    Raises:
        RuntimeError: processes read different ones, on all of them; or another one failed.
        Exception: what `choose` or `read` raised here.
    """
    if jax.process_count() == 1:
        return choose(read)
    if not is_main_process():
        return _follow(where, read, identify)
    over = False

    def read_announced(number: int) -> Found:
        nonlocal over
        gather_values([number])
        try:
            return _attempt(where, number, read, identify)
        except DamagedCheckpoint:
            raise
        except BaseException:
            over = True  # on all: nobody waits for an announcement
            raise

    try:
        found = choose(read_announced)
    except BaseException:
        if not over:
            gather_values([_FAILED])
        raise
    gather_values([_FINISHED])
    return found


def _follow(
    where: RunPath, read: Callable[[int], Found], identify: Callable[[Found], tuple[int, int]]
) -> Found | None:
    """Read what the main process announces, until it has finished."""
    found: Found | None = None
    while (number := gather_values([0])[0][0]) >= 0:
        try:
            found = _attempt(where, number, read, identify)
        except DamagedCheckpoint:
            found = None
    if number == _FAILED:
        raise RuntimeError(
            f"reading a checkpoint in {where} failed on process 0, whose own error says why; "
            f"process {jax.process_index()} ends with it"
        )
    return found


def _attempt(
    where: RunPath,
    number: int,
    read: Callable[[int], Found],
    identify: Callable[[Found], tuple[int, int]],
) -> Found:
    """Read a checkpoint, and agree on what became of it."""
    found: Found | None = None
    failure: Exception | None = None
    try:
        found = read(number)
    except Exception as error:
        failure = error
    if found is not None:
        mine = (_INTACT, *identify(found))
    else:
        mine = (_DAMAGED if isinstance(failure, DamagedCheckpoint) else _ERROR, 0, 0)
    all_of_them = gather_values(mine)
    outcomes = np.array([outcome for outcome, _, _ in all_of_them])
    if (outcomes == _ERROR).any():
        if failure is not None and not isinstance(failure, DamagedCheckpoint):
            raise failure
        raise RuntimeError(
            f"reading checkpoint {number} in {where} failed on process "
            f"{', '.join(map(str, np.flatnonzero(outcomes == _ERROR)))}, whose own error says why; "
            f"process {jax.process_index()} ends with it"
        )
    if failure is not None:
        raise failure
    if (outcomes == _DAMAGED).any():
        others = ", ".join(map(str, np.flatnonzero(outcomes == _DAMAGED)))
        raise DamagedCheckpoint(
            f"checkpoint {number} in {where}: process {others} finds it damaged, or does not find "
            "it: its own message says why. The directory must be one that all processes share"
        )
    if len(set(all_of_them)) > 1:
        raise RuntimeError(
            f"processes read different checkpoints {number} in {where}: the directory must be one "
            "that all processes share, and nothing else may write there"
        )
    assert found is not None
    return found
