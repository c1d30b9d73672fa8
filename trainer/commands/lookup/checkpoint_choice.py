"""Choose the checkpoint of a run that a command line names."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.load import restore
from trainer.checks.modes import Mode
from trainer.commands.lookup.scores import check_metric_names, require_mode
from trainer.commands.lookup.stores import VARIABLE, open_run
from trainer.commands.terminal.calling import CommandError, convert_errors, parse_local_path
from trainer.evaluators.checkpoint_ranking import best_checkpoint
from trainer.host.escaping import escape_lines
from trainer.runs.recorded_curves import metric_names
from trainer.state import TrainState


@dataclasses.dataclass(frozen=True)
class CheckpointSelection:
    """Which checkpoint of a run to take; the newest by default."""

    epoch: int | None = None
    """epoch of the checkpoint; the newest if neither this nor --best is given."""
    best: str | None = None
    """take the checkpoint with the best score of this name, such as val/loss."""
    mode: Mode | None = None
    """which of two scores is better, min or max, if the name does not tell."""


NEWEST = CheckpointSelection()

SelectionOptions = Annotated[CheckpointSelection, tyro.conf.arg(name="")]


class CheckpointChoice(NamedTuple):
    """A checkpoint of a run, still to be restored."""

    run: str
    """The run's name."""
    directory: Path
    """The run's directory."""
    epoch: int | None
    """None for the newest intact checkpoint."""
    best: str | None = None
    """The score by which it is the best, if training recorded it; the epoch is None then."""
    mode: Mode | None = None

    def restore(self, template: TrainState) -> TrainState:
        """Restore it into a template with the same structure, types and placement.

        Raises:
            CommandError: there is none, it is damaged, or does not fit the template.
        """
        try:
            return restore(
                self.directory, template, epoch=self.epoch, best=self.best, mode=self.mode
            )
        except (OSError, ValueError, DamagedCheckpoint) as error:
            raise CommandError(escape_lines(error)) from error


def choose_checkpoint(
    run: str, store: str | None, selection: CheckpointSelection
) -> CheckpointChoice:
    """Choose a checkpoint of a run, by its scores from training or from evaluators.

    A run whose directory is given need not be recorded.

    Raises:
        CommandError: there is no such run or score, or both epoch and best are given.
    """
    epoch, best, mode = selection.epoch, selection.best, selection.mode
    if epoch is not None and best is not None:
        raise CommandError("give --epoch or --best, not both")
    with contextlib.ExitStack() as stack:
        try:
            there, row = stack.enter_context(open_run(run, store))
        except CommandError:
            directory = parse_local_path(run, "a run")
            if store or os.environ.get(VARIABLE) or not (directory / "checkpoints").is_dir():
                raise
            mode = require_mode(best, mode) if best is not None else None
            return CheckpointChoice(directory.name, directory, epoch, best, mode)
        if best is not None:
            saved = there.checkpoints(row.name, present=True)
            scored = {name for checkpoint in saved for name in checkpoint.scores}
            check_metric_names([best], scored.union(metric_names(there, row.name)))
            with convert_errors(ValueError):
                found = best_checkpoint(there, row.name, best, mode=require_mode(best, mode))
            epoch = found.checkpoint.epoch
        return CheckpointChoice(row.name, Path(row.directory), epoch)
