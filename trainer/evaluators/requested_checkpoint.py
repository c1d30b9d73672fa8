"""Restoring what a request asks for: that very commit, read only, and verified."""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoints import publishing
from trainer.checkpoints.load import part_of
from trainer.checkpoints.manifest import DamagedCommit
from trainer.checkpoints.select import folder_of, stamp
from trainer.evaluators.suite import Suite
from trainer.runs.checkpoint_rows import described
from trainer.runs.rows import Request
from trainer.state import TrainState


class Hopeless(ValueError):  # noqa: N818 (of a request, whose suite may be in order)
    """A request that cannot be answered, however often it is tried."""


def restored(suite: Suite, request: Request, directory: Path, *, present: bool) -> TrainState:
    """Restore the commit of a request into the suite's template.

    Args:
        suite: what is to be measured.
        request: which commit it is, and its checksum.
        directory: of the run; nothing in it is changed.
        present: whether it is on record that the commit is still there.

    Raises:
        Hopeless: it is damaged, was removed, is another one than was asked for, or does not fit.
        FileNotFoundError: it should be there, and this machine does not see it.
        MemoryError: it takes more than this machine has.
    """
    folder, number = folder_of(directory), request.epoch
    while True:
        before = stamp(folder, number)
        if before is None:
            raise _missing(folder, number, present=present)
        try:
            checksum = described(directory, number).checksum
            if checksum != request.checksum:
                raise Hopeless(
                    f"commit {number} in {folder} is another one than was asked for: its epoch was "
                    "trained anew; ask for it again"
                )
            trees = part_of(folder, number, publishing.Storage(), suite.wanted(), ()).trees
        except DamagedCommit as damage:
            if stamp(folder, number) != before:
                continue  # the run removed or replaced it meanwhile
            raise Hopeless(str(damage)) from damage
        except Hopeless:
            raise
        except ValueError as error:
            raise Hopeless(f"suite {suite.name!r} does not fit: {error}") from error
        if stamp(folder, number) in (before, None):  # it may be removed once it was read
            return suite.filled(trees)


def _missing(folder: Path, number: int, *, present: bool) -> Exception:
    if present:
        return FileNotFoundError(
            f"there is no commit {number} in {folder} as this machine sees it, and it is on record "
            "as one that is there: let evaluators see the runs' directories at the same paths"
        )
    return Hopeless(
        f"commit {number} in {folder} was removed before it was evaluated: keep more of them, "
        "save_checkpoints(..., keep=...), or run more evaluators"
    )
