"""Evaluation elsewhere: a run asks for its commits to be evaluated, by whoever takes requests."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping

from hooks.base import get_hook_state, set_hook_state
from hooks.combining import Chain, chain
from hooks.metric_logging import read_step_epoch
from hooks.writers.database import require_run
from trainer import Hook, TrainState
from trainer.checkpoints import wait_for_saves
from trainer.checkpoints.select import Stamp, get_checkpoint_folder, read_stamp
from trainer.hook import HookState
from trainer.runs import Run
from trainer.runs.checkpoint_rows import list_complete_epochs
from trainer.runs.requests import list_requests
from trainer.runs.store_polling import StorePoller
from trainer.runs.text import check_name

log = logging.getLogger("entracte")


def request_evaluation(run: Run, suite: str) -> Chain:
    """Ask for commits to be evaluated elsewhere; `every(5, ...)` thins it out.

    Of each epoch at which it runs the commit is wanted, or the next one where none is made of that
    epoch (`save_checkpoints` leaves out some, see its `max_cost`). Commits are written in the
    background: once such a one is complete, the next event asks for it, the end of the run at the
    latest. What is wanted is remembered, so that a run that was killed between asks when it goes
    on; to ask twice changes nothing.

    It needs `save_checkpoints` on the run's directory, wherever in the chain. What evaluators find
    is in the store, and `collect_scores` brings it into the run.

    Args:
        run: on record, `trainer.runs.Run(directory)`, with the directory of `save_checkpoints`.
        suite: name of what shall be run, as evaluators know it.

    Raises:
        TypeError: it is no `Run`.
        ValueError: the suite has no name that can be one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(request_evaluation(Run(f"{folder}/digits"), "full"))
    event  stage    hook                           reads  writes
    start  observe  request_evaluation/full/start
    epoch  observe  request_evaluation/full
    """
    require_run("request_evaluation", run)
    name = request_state_name(suite)
    folder = get_checkpoint_folder(run.directory)
    wanted: list[int] = []  # epochs whose commit, or the next one, is not complete yet
    abandoned: dict[int, Stamp | None] = {}  # commits beyond the one that the run goes on from

    def ready() -> list[int]:
        numbers = list_complete_epochs(run.directory)
        return [n for n in numbers if n not in abandoned or abandoned[n] != read_stamp(folder, n)]

    def ask() -> None:
        """Ask for the commits that have become complete."""
        if not wanted:
            return
        numbers, asked = ready(), set[int]()
        while wanted and (number := next((n for n in numbers if n >= wanted[0]), None)):
            if number not in asked:
                run.ask(suite, number)
                asked.add(number)
            del wanted[0]

    def begin(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        step, epoch = read_step_epoch(state)
        run.resume(epoch=epoch, step=step)
        wanted.clear()
        abandoned.clear()
        abandoned.update(
            {n: read_stamp(folder, n) for n in list_complete_epochs(run.directory) if n > epoch}
        )
        number = get_hook_state(state, name, _nothing)["wanted"]
        if number and not _asked_before(run, suite, number, epoch, ready()):
            wanted.append(number)
            ask()
        return state

    def want(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        epoch = read_step_epoch(state)[1]
        if wanted[-1:] != [epoch]:
            wanted.append(epoch)
        return set_hook_state(state, name, {"wanted": epoch})

    def flush() -> None:
        """Ask before a commit, which would remember no more what was wanted before it."""
        if wanted:
            wait_for_saves()
            ask()
        run.flush()

    def close() -> None:
        try:
            if wanted:
                wait_for_saves()
                ask()
            if wanted and sys.exc_info()[1] is None:
                log.warning(
                    "%s: no commit was made in %s since epoch %d, so that no evaluation of it is "
                    "asked for: the chain needs save_checkpoints on this directory",
                    name,
                    folder,
                    wanted[0],
                )
        finally:
            wanted.clear()
            run.close()

    return chain(
        Hook(begin, f"{name}/start", event="start", stage="observe", dry_run=_leave),
        Hook(
            want,
            name,
            stage="observe",
            hook_states=(HookState(name, _nothing),),
            dry_run=_leave,
            check_background=ask,
            flush=flush,
            close=close,
        ),
    )


def request_state_name(suite: str) -> str:
    """Name the memory of what is wanted of a suite: `{"wanted": epoch}`, 0 before the first.

    Raises:
        ValueError: the suite has no name that can be one.

    >>> request_state_name("full")
    'request_evaluation/full'
    """
    return f"request_evaluation/{check_name(suite, 'a suite')}"


def _nothing(state: TrainState) -> dict[str, int]:
    return {"wanted": 0}


def _leave(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
    return state


def _asked_before(run: Run, suite: str, wanted: int, epoch: int, numbers: list[int]) -> bool:
    """Say whether a commit was asked for and is gone, so that a later one is not asked for too.

    Args:
        run: on record.
        suite: to look for.
        wanted: the epoch.
        epoch: that the run goes on from.
        numbers: of the commits that are there.
    """
    if wanted == epoch or any(wanted <= number < epoch for number in numbers):
        return False
    try:
        with contextlib.closing(StorePoller(run.url)) as onlooker:
            known = onlooker.ask(list_requests, run.name)
    except OSError as error:  # to ask for one too many is better than for one too few
        log.debug("%s: whether %r was asked for is not known", error, suite)
        return False
    return any(one.suite == suite and wanted <= one.epoch < epoch for one in known)
