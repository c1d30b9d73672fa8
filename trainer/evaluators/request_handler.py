"""Answer one request: restore, evaluate, run hooks, and list the files that they wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.evaluators.requested_checkpoint import UnanswerableRequest, restore_requested
from trainer.evaluators.suite import Suite
from trainer.host.escaping import escape_text
from trainer.host.safe_open import UnsafeFile, make_own_folder
from trainer.loop.events import HookRunner
from trainer.loop.hook_states import init_hook_states
from trainer.phases.evaluate_once import evaluate
from trainer.phases.metrics import Metrics
from trainer.runs.artifacts import EPOCH_PREFIX, to_stored_path
from trainer.runs.requests import finish_request, is_finished
from trainer.runs.rows import Artifact, Request, RunRow
from trainer.runs.store import Store
from trainer.state import read_step_count

EVALUATIONS_FOLDER = "evaluations"
"""In a run's directory, for the files that hooks of suites write: one folder a suite."""

KINDS = {"replays": "replay", "plots": "plot", "reports": "report"}
"""Kind of artifacts by folder; elsewhere they are of the kind `file`."""

MAX_OPEN = 16
"""Runs whose hooks are kept, with what they compiled; those of the oldest run are closed first."""

STAGES = ("control", "observe")


class EvaluationResult(NamedTuple):
    """The result of a request."""

    scores: Mapping[str, float]
    artifacts: Sequence[Artifact]


class RequestHandler:
    """Suites by name, and the hooks that they created so far; close it.

    Args:
        suites: those that can be requested.

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
        """Evaluate the checkpoint of a request.

        Args:
            request: one that belongs to this worker.
            run: whose checkpoint it is.
            present: whether the checkpoint still exists, according to the store.

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
                _kind(path),
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


def _kind(path: Path) -> str:
    return KINDS.get(path.parent.name, "file")
