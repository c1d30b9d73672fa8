"""Which checkpoint of a run is meant, on a command line."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from trainer.checkpoints.load import restore
from trainer.checkpoints.manifest import DamagedCheckpoint
from trainer.checks.modes import Mode, infer_mode
from trainer.commands.lookup.scores import check_metric_names
from trainer.commands.lookup.stores import VARIABLE, open_run
from trainer.commands.terminal.calling import CommandError, parse_local_path
from trainer.evaluators.checkpoint_ranking import best_checkpoint
from trainer.host.escaping import escape_lines, escape_text
from trainer.runs.metric_curves import metric_names
from trainer.state import TrainState


class CheckpointChoice(NamedTuple):
    """A checkpoint of a run, still to be restored."""

    run: str
    """The run's name."""
    directory: Path
    """Of the run."""
    epoch: int | None
    """None is the newest that is intact."""
    best: str | None = None
    """The score by which it is the best, where training knew it; the epoch is None then."""
    mode: Mode | None = None

    def restore(self, template: TrainState) -> TrainState:
        """Restore it.

        Args:
            template: gives structure, types and places: `task.init(key, example)`.

        Raises:
            Refused: there is none, it is damaged, or does not fit the template.
        """
        try:
            return restore(
                self.directory, template, epoch=self.epoch, best=self.best, mode=self.mode
            )
        except (OSError, ValueError, DamagedCheckpoint) as error:
            raise CommandError(escape_lines(error)) from error


def choose_checkpoint(
    run: str, store: str | None, *, epoch: int | None, best: str | None, mode: Mode | None
) -> CheckpointChoice:
    """Choose a checkpoint of a run, which need not be on record if its directory is given.

    Args:
        run: its name in the store that is meant, or its directory.
        store: as it was named.
        epoch: of the checkpoint.
        best: the score by which it is the best, of those that evaluators found too; where neither
            is given, the newest is chosen.
        mode: `min` or `max`; by the score's name where None.

    Raises:
        Refused: there is no such run or score, or too much is asked for.
    """
    if epoch is not None and best is not None:
        raise CommandError("give --epoch or --best, not both")
    with contextlib.ExitStack() as stack:
        try:
            there, row = stack.enter_context(open_run(run, store))
        except CommandError:
            directory = parse_local_path(run, "a run")
            if store or os.environ.get(VARIABLE) or not (directory / "checkpoints").is_dir():
                raise
            mode = _mode(best, mode) if best is not None else None
            return CheckpointChoice(directory.name, directory, epoch, best, mode)
        if best is not None:
            commits = there.checkpoints(row.name, present=True)
            check_metric_names(
                [best], {*metric_names(there, row.name), *(s for c in commits for s in c.scores)}
            )
            try:
                found = best_checkpoint(there, row.name, best, mode=_mode(best, mode))
            except ValueError as error:
                raise CommandError(escape_text(error)) from error
            epoch = found.checkpoint.epoch
        return CheckpointChoice(row.name, Path(row.directory), epoch)


def _mode(best: str, mode: Mode | None) -> Mode:
    if (found := mode or infer_mode(best)) is None:
        raise CommandError(
            f"whether a smaller or a larger {escape_text(best)} is better, its name does not tell: "
            "give "
            "--mode min or --mode max"
        )
    return found
