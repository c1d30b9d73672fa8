"""Answering one request: restore, evaluate, let hooks look, and gather what they left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.evaluators.requested_checkpoint import UnanswerableRequest, restore_requested
from trainer.evaluators.suite import Suite
from trainer.host.escaping import escape_text
from trainer.host.safe_open import UnsafeFile, make_own_folder
from trainer.loop.events import HookRunner
from trainer.phases.evaluate_once import evaluate
from trainer.phases.metrics import Metrics
from trainer.runs.artifacts import OF_EPOCH, within
from trainer.runs.requests import finish
from trainer.runs.rows import Artifact, Request, RunRow
from trainer.runs.store import Store
from trainer.state import read_step_count

FOLDER = "evaluations"
"""In a run's directory: what the hooks of suites write, a folder a suite."""

KINDS = {"replays": "replay", "plots": "plot", "reports": "report"}
"""Folder to kind of the artifacts in it; they are of the kind `file` elsewhere."""

OPEN = 16
"""Runs whose hooks are kept, with all that they compiled; those of the run used first go first."""

STAGES = ("control", "observe")


class EvaluationResult(NamedTuple):
    """What came of a request."""

    scores: Mapping[str, float]
    artifacts: Sequence[Artifact]


class RequestHandler:
    """Suites by name, and the hooks that they made so far; close it.

    Args:
        suites: those that can be asked for.

    Raises:
        ValueError: there is none, or two have one name.
    """

    def __init__(self, suites: Sequence[Suite]) -> None:
        self.suites = {suite.name: suite for suite in suites}
        names = [suite.name for suite in suites]
        if not names or len(self.suites) < len(names):
            raise ValueError(
                f"an evaluator needs suites with names of their own; got {names}: "
                'trainer.evaluators.Suite("digits", ...)'
            )
        self._events: dict[Path, HookRunner] = {}

    def answer(self, request: Request, run: RunRow, *, present: bool) -> EvaluationResult:
        """Evaluate what a request asks for.

        Args:
            request: one that is this worker's.
            run: whose commit it is.
            present: whether it is on record that the commit is still there.

        Raises:
            Hopeless: it cannot be answered, however often it is tried.
            Exception: what restoring, a phase or a hook raised.
        """
        suite = self.suites[request.suite]
        state = restore_requested(suite, request, Path(run.directory), present=present)
        scores = evaluate(state, suite.program)
        if suite.hooks is None:
            return EvaluationResult(scores, ())
        folder = Path(run.directory, FOLDER, suite.name)
        try:
            make_own_folder(folder, run.directory)
        except UnsafeFile as error:
            raise UnanswerableRequest(
                f"suite {suite.name!r} has hooks, whose files go to {escape_text(folder)}, and the "
                "store "
                f"alone names that directory: {error}. Evaluate as the user who trains, or without "
                "hooks"
            ) from error
        events, before = self._events_of(suite, folder), _files(folder)
        state = events.init_hook_states(state)
        _, metrics = events.run("epoch", state, Metrics(scores), stages=STAGES)
        events.flush()
        artifacts = [
            Artifact(
                within(run.directory, path),
                _kind(path),
                request.epoch,
                read_step_count(state),
                size,
            )
            for path, (changed, size) in _files(folder).items()
            if before.get(path) != (changed, size) and _is_of(path, request.epoch)
        ]
        return EvaluationResult(dict(metrics), artifacts)

    def _events_of(self, suite: Suite, folder: Path) -> HookRunner:
        if folder not in self._events:
            if len(self._events) == OPEN:
                self._events.pop(next(iter(self._events))).close()
            names = [phase.name for phase in suite.program]
            self._events[folder] = HookRunner(suite.make_hooks(folder), names)
        return self._events[folder]

    def close(self) -> None:
        """Close all hooks."""
        while self._events:
            self._events.popitem()[1].close()


def _is_of(path: Path, epoch: int) -> bool:
    """Say whether a file is of an epoch, as far as its name tells; other workers write too."""
    named = OF_EPOCH.match(path.name)
    return named is None or int(named[1]) == epoch


def write_result(store: Store, request: Request, answer: EvaluationResult) -> bool:
    """Write an answer, all of it at once; False, and nothing is written, where another has it."""
    with store.connection.transaction():
        if not finish(store, request, answer.scores):
            return _is_already_written(store, request)
        for artifact in answer.artifacts:
            store.write_artifact(request.run, artifact)
    return True


def _is_already_written(store: Store, request: Request) -> bool:
    """Say whether this very try was settled, by a call of which no confirmation came."""
    mine = ("run", "epoch", "suite", "worker", "tries", "checksum")
    conditions = " AND ".join(f"{column} = ?" for column in mine)
    values = tuple(getattr(request, column) for column in mine)
    found = store.connection.execute(
        f"SELECT 1 FROM requests WHERE state = 'done' AND {conditions}", values
    )
    return bool(found)


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Give the files below a folder, each with what changes when it is written: time and size."""
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (status.st_mtime_ns, status.st_size) for path, status in found.items()}


def _kind(path: Path) -> str:
    return KINDS.get(path.parent.name, "file")
