"""Restoring what a request asks for: that very commit, read only, and verified."""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoints import publishing
from trainer.checkpoints.load import read_part_at
from trainer.checkpoints.manifest import DamagedCheckpoint
from trainer.checkpoints.select import get_checkpoint_folder, read_stamp
from trainer.evaluators.suite import Suite
from trainer.runs.checkpoint_rows import describe_checkpoint
from trainer.runs.rows import Request
from trainer.state import TrainState


class UnanswerableRequest(ValueError):  # noqa: N818 (of a request, whose suite may be in order)
    """A request that cannot be answered, however often it is tried."""


def restore_requested(
    suite: Suite, request: Request, directory: Path, *, present: bool
) -> TrainState:
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
    folder, number = get_checkpoint_folder(directory), request.epoch
    while True:
        before = read_stamp(folder, number)
        if before is None:
            raise _missing(folder, number, present=present)
        try:
            checksum = describe_checkpoint(directory, number).checksum
            if checksum != request.checksum:
                raise UnanswerableRequest(
                    f"commit {number} in {folder} is another one than was asked for: its epoch was "
                    "trained anew; ask for it again"
                )
            trees = read_part_at(
                folder, number, publishing.ArrayStorage(), suite.required_trees(), ()
            ).trees
        except DamagedCheckpoint as damage:
            if read_stamp(folder, number) != before:
                continue  # the run removed or replaced it meanwhile
            raise UnanswerableRequest(str(damage)) from damage
        except UnanswerableRequest:
            raise
        except ValueError as error:
            raise UnanswerableRequest(f"suite {suite.name!r} does not fit: {error}") from error
        if read_stamp(folder, number) in (before, None):  # it may be removed once it was read
            return suite.fill_template(trees)


def _missing(folder: Path, number: int, *, present: bool) -> Exception:
    if present:
        return FileNotFoundError(
            f"there is no commit {number} in {folder} as this machine sees it, and it is on record "
            "as one that is there: let evaluators see the runs' directories at the same paths"
        )
    return UnanswerableRequest(
        f"commit {number} in {folder} was removed before it was evaluated: keep more of them, "
        "save_checkpoints(..., keep=...), or run more evaluators"
    )
