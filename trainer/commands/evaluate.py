"""The command `evaluate`: evaluate checkpoints on request, beside training or on other machines."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from trainer.commands.lookup.stores import RunNames, StoreName, find_runs, open_store
from trainer.commands.terminal.calling import LOAD_ERRORS, convert_errors
from trainer.evaluators.evaluator import WorkerSettings, work
from trainer.evaluators.suite_loading import load_suites
from trainer.runs.requests import TRIES

FAILED = 1
"""Exit status if an evaluation failed."""


def evaluate(
    *,
    suite: tuple[str, ...],
    store: StoreName = None,
    runs: RunNames = (),
    idle: float | None = None,
    again: bool = False,
    lease: float = 60.0,
    pause: float = 1.0,
    tries: int = TRIES,
    limit: float | None = None,
) -> int:
    """Evaluate checkpoints on request; any number of evaluators may run, on many machines.

    It restores each requested checkpoint, read-only and verified, evaluates it, and writes the
    scores to the store. The runs' directories must have the same paths here as in training. SIGTERM
    and SIGINT end it after the current evaluation, a second one at once, with exit status 143 or
    130; if an evaluation failed for good, it ends with 1.

    Args:
        suite: FILE:NAME of one or several evaluations: a trainer.evaluators.Suite, a sequence of
            them, or a function that returns them, such as examples/digits.py:suite.
        runs: names of runs; first requests the evaluation of all their checkpoints.
        idle: end after so many seconds without requests; 0 ends as soon as none is open.
        again: first reopen failed requests, once their cause is fixed.
        lease: seconds without a heartbeat after which another evaluator takes over a request.
        pause: seconds between two polls for requests.
        tries: how often a request is tried at most.
        limit: seconds that a request may take; a longer one is aborted and counts as failed.
    """
    with convert_errors(*LOAD_ERRORS):
        suites = load_suites(*suite)
    with open_store(store) as opened:
        url, names = opened.url, [row.name for row in find_runs(opened, runs)]
    with convert_errors(ValueError), _log_to_terminal():
        settings = WorkerSettings(lease=lease, pause=pause, tries=tries, limit=limit)
        summary = work(url, suites, settings, idle=idle, again=again, runs=names)
    return FAILED if summary.failed else 0


@contextlib.contextmanager
def _log_to_terminal() -> Iterator[None]:
    """Print the evaluator's log, each line with its time."""
    log, handler = logging.getLogger("entracte"), logging.StreamHandler()
    before = log.level, log.propagate
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # libraries leave handlers at the root
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]
