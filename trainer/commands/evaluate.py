"""The command `evaluate`: answer requests for evaluations, beside training or on other machines."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from trainer.commands.lookup.stores import RunNames, find_runs, open_store
from trainer.commands.terminal.calling import CommandError, convert_load_errors
from trainer.evaluators.evaluator import WorkerSettings, work
from trainer.evaluators.suite import Suite
from trainer.evaluators.suite_loading import load_suites
from trainer.host.escaping import escape_text
from trainer.runs.requests import TRIES

FAILED = 1
"""Exit status where an evaluation failed."""


def evaluate(
    *,
    suite: tuple[str, ...],
    store: str | None = None,
    runs: RunNames = (),
    idle: float | None = None,
    again: bool = False,
    lease: float = 60.0,
    pause: float = 1.0,
    tries: int = TRIES,
    limit: float | None = None,
) -> int:
    """Evaluate checkpoints as they are asked for; any number of these may run, on many machines.

    It restores each checkpoint that is asked for, read-only and verified, measures it, and writes
    the scores to the store. The runs' directories must be seen here at the same paths as in
    training. SIGTERM and SIGINT end it after the running evaluation, a second one at once, with
    exit status 143 or 130; if an evaluation failed for good, it ends with 1.

    Args:
        suite: FILE:NAME of what is measured, one or several: a trainer.evaluators.Suite, a sequence
            of them, or a function that makes them, such as examples/digits.py:suite.
        store: directory of the runs, file *.sqlite, or postgresql://USER@HOST/DATABASE; else
            $ENTRACTE_STORE, else runs/.
        runs: names of runs; all their checkpoints are asked for first.
        idle: end where there was nothing to do for so many seconds; 0: as soon as nothing waits.
        again: first open what has failed before, now that its reason is mended.
        lease: seconds after which a request of an evaluator that gives no sign is another's.
        pause: seconds between two looks for requests.
        tries: how often a request is tried at most.
        limit: seconds that a request may take; longer ones are broken off, as tries that failed.
    """
    suites = _loaded(suite)
    with open_store(store) as there:
        url, names = there.url, [row.name for row in find_runs(there, runs)]
    try:
        settings = WorkerSettings(lease=lease, pause=pause, tries=tries, limit=limit)
        with _telling():
            worked = work(url, suites, settings, idle=idle, again=again, runs=names)
    except ValueError as error:
        if hasattr(error, "__notes__"):
            raise  # of a suite's own phases
        raise CommandError(escape_text(error)) from error
    return FAILED if worked.failed else 0


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """Print what the worker tells, each line with its time."""
    log, handler = logging.getLogger("entracte"), logging.StreamHandler()
    before = log.level, log.propagate
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # libraries leave handlers of their own at the root
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


def _loaded(named: tuple[str, ...]) -> tuple[Suite, ...]:
    with convert_load_errors():
        return load_suites(*named)
