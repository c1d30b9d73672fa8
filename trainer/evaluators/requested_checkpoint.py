"""Restore the checkpoint of a request: exactly that one, read only, and verified."""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoints.load import read_part_at
from trainer.checkpoints.manifest import DamagedCheckpoint
from trainer.checkpoints.select import get_checkpoint_folder, read_stamp
from trainer.evaluators.suite import Suite
from trainer.runs.checkpoint_rows import describe_checkpoint
from trainer.runs.rows import Request
from trainer.state import TrainState


class UnanswerableRequest(ValueError):  # noqa: N818 (its suite may be correct)
    """A request that cannot be answered, however often it is tried."""


def restore_requested(
    suite: Suite, request: Request, directory: Path, *, present: bool
) -> TrainState:
    """Restore the checkpoint of a request into the suite's template.

    Args:
        suite: to evaluate.
        request: names the checkpoint and its checksum.
        directory: of the run; nothing in it is changed.
        present: whether the checkpoint still exists, according to the store.

    Raises:
        UnanswerableRequest: the checkpoint is damaged, was removed or replaced, or does not fit.
        FileNotFoundError: it should exist, and this machine does not see it.
        MemoryError: it takes more memory than this machine has.
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
                    f"checkpoint {number} in {folder} is not the one that was requested: its epoch "
                    "was trained again; request its evaluation again"
                )
            trees = read_part_at(folder, number, suite.required_trees()).trees
        except DamagedCheckpoint as damage:
            if read_stamp(folder, number) != before:
                continue  # the run removed or replaced it meanwhile
            raise UnanswerableRequest(str(damage)) from damage
        except UnanswerableRequest:
            raise
        except ValueError as error:
            raise UnanswerableRequest(f"suite {suite.name!r} does not fit: {error}") from error
        if read_stamp(folder, number) in (before, None):  # it may be removed after it was read
            return suite.fill_template(trees)


def _missing(folder: Path, number: int, *, present: bool) -> Exception:
    if present:
        return FileNotFoundError(
            f"there is no checkpoint {number} in {folder} as this machine sees it, and the store "
            "says that it exists: let evaluators see the runs' directories at the same paths"
        )
    return UnanswerableRequest(
        f"checkpoint {number} in {folder} was removed before it was evaluated: keep more of them, "
        "save_checkpoints(..., keep=...), or run more evaluators"
    )
