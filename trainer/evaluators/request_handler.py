"""Answer one request: restore, evaluate, run hooks, and list the files that they wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.load import read_part_at
from trainer.checkpoints.select import get_local_checkpoint_folder, read_stamp
from trainer.evaluators.suite import Suite
from trainer.host.escaping import escape_text
from trainer.host.safe_open import UnsafeFile, make_own_folder
from trainer.loop.events import HookRunner
from trainer.loop.hook_states import init_hook_states
from trainer.phases.factories import evaluate
from trainer.phases.metrics import Metrics
from trainer.runs.requests import finish_request, is_finished
from trainer.runs.rows import Artifact, Request, RunRow
from trainer.runs.run_directory import EPOCH_PREFIX, describe_checkpoint, to_stored_path
from trainer.runs.store import Store
from trainer.state import TrainState, read_step_count

EVALUATIONS_FOLDER = "evaluations"
"""In a run's directory, for the files that hooks of suites write: one folder a suite."""

KINDS = {"replays": "replay", "plots": "plot", "reports": "report"}
"""Kind of artifacts by folder; elsewhere they are of the kind `file`."""

MAX_OPEN = 16
"""Runs whose hooks are kept, with what they compiled; those of the oldest run are closed first."""

STAGES = ("control", "observe")


class UnanswerableRequest(ValueError):  # noqa: N818 (its suite may be correct)
    """A request that cannot be answered, however often it is tried."""


class EvaluationResult(NamedTuple):
    """The result of a request."""

    scores: Mapping[str, float]
    artifacts: Sequence[Artifact]


class RequestHandler:
    """Suites that can be requested, by name, and the hooks that they created so far; close it.

    Raises:
        ValueError: there is no suite, or two have one name.
    """

    def __init__(self, suites: Sequence[Suite]) -> None:
        self.suites = {suite.name: suite for suite in suites}
        names = [suite.name for suite in suites]
        if not names or len(self.suites) < len(names):
            raise ValueError(
                f"an evaluator needs suites with names of their own; got {names}: "
                'trainer.evaluators.Suite("digits", ...)'
            )
        self._runners: dict[Path, HookRunner] = {}

    def answer(self, request: Request, run: RunRow, *, present: bool) -> EvaluationResult:
        """Evaluate the checkpoint of a request; `present`: it exists, according to the store.

        Raises:
            UnanswerableRequest: it cannot be answered, however often it is tried.
            Exception: what restoring, a phase or a hook raised.
        """
        suite = self.suites[request.suite]
        state = restore_requested(suite, request, Path(run.directory), present=present)
        scores = evaluate(state, suite.program)
        if suite.hooks is None:
            return EvaluationResult(scores, ())
        folder = Path(run.directory, EVALUATIONS_FOLDER, suite.name)
        try:
            make_own_folder(folder, run.directory)
        except UnsafeFile as error:
            raise UnanswerableRequest(
                f"suite {suite.name!r} has hooks, whose files go to {escape_text(folder)}, and "
                f"only the store names that directory: {error}. Evaluate as the user who trains, "
                "or without hooks"
            ) from error
        runner, before = self._open_hooks(suite, folder), _list_files(folder)
        state = init_hook_states(runner.hooks, state)
        _, metrics = runner.run("epoch", state, Metrics(scores), stages=STAGES)
        runner.flush()
        artifacts = [
            Artifact(
                to_stored_path(run.directory, path),
                KINDS.get(path.parent.name, "file"),
                request.epoch,
                read_step_count(state),
                size,
            )
            for path, (changed, size) in _list_files(folder).items()
            if before.get(path) != (changed, size) and _belongs_to(path, request.epoch)
        ]
        return EvaluationResult(dict(metrics), artifacts)

    def _open_hooks(self, suite: Suite, folder: Path) -> HookRunner:
        if folder not in self._runners:
            if len(self._runners) == MAX_OPEN:
                self._runners.pop(next(iter(self._runners))).close()
            names = [phase.name for phase in suite.program]
            self._runners[folder] = HookRunner(suite.make_hooks(folder), names)
        return self._runners[folder]

    def close(self) -> None:
        """Close all hooks."""
        while self._runners:
            self._runners.popitem()[1].close()


def restore_requested(
    suite: Suite, request: Request, directory: Path, *, present: bool
) -> TrainState:
    """Restore the checkpoint of a request into the suite's template: exactly that one, verified.

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
    folder, number = get_local_checkpoint_folder(directory), request.epoch
    while True:
        before = read_stamp(folder, number)
        if before is None and present:
            raise FileNotFoundError(
                f"there is no checkpoint {number} in {folder} as this machine sees it, and the "
                "store says that it exists: let evaluators see the runs' directories at the same "
                "paths"
            )
        if before is None:
            raise UnanswerableRequest(
                f"checkpoint {number} in {folder} was removed before it was evaluated: keep more "
                "of them, save_checkpoints(..., keep=...), or run more evaluators"
            )
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


def _belongs_to(path: Path, epoch: int) -> bool:
    """Return whether a file may belong to an epoch, by its name; other workers write files too."""
    named = EPOCH_PREFIX.match(path.name)
    return named is None or int(named[1]) == epoch


def write_result(store: Store, request: Request, result: EvaluationResult) -> bool:
    """Write a result in one transaction; return False, and write nothing, if another has it."""
    with store.connection.transaction():
        if not finish_request(store, request, result.scores):
            return is_finished(store, request)
        for artifact in result.artifacts:
            store.write_artifact(request.run, artifact)
    return True


def _list_files(folder: Path) -> dict[Path, tuple[int, int]]:
    """List the files below a folder, each with its modification time and size."""
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (status.st_mtime_ns, status.st_size) for path, status in found.items()}
