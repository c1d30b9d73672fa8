"""Remote evaluation: request the evaluation of a run's checkpoints by any evaluator."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping

from hooks.combining import Chain, chain
from hooks.writers.database import require_run
from trainer import Hook, TrainState
from trainer.checkpoints import wait_for_saves
from trainer.checkpoints.select import Stamp, get_local_checkpoint_folder, read_stamp
from trainer.hook import SKIP, HookState, get_hook_state, set_hook_state
from trainer.runs import Run
from trainer.runs.requests import list_requests
from trainer.runs.run_directory import list_checkpoint_epochs
from trainer.runs.store_client import StorePoller
from trainer.runs.text import check_name
from trainer.state import read_epoch, read_step_epoch

log = logging.getLogger("entracte")


def request_evaluation(run: Run, suite: str) -> Chain:
    """Request the evaluation of checkpoints elsewhere; `every(5, ...)` requests fewer.

    Each epoch at which this hook runs wants its checkpoint evaluated, or the next one if it saves
    none (see `max_cost` of `save_checkpoints`). Checkpoints are written in the background: when one
    is complete, the next event requests its evaluation, at the latest the end of the run. The hook
    state holds what is wanted, so that a run that was killed requests it when it resumes.

    It needs `save_checkpoints` on the run's directory, anywhere in the chain. The results of
    evaluators are in the store, and `collect_scores` adds them to the run's scores.

    Args:
        run: a recorded run, `trainer.runs.Run(directory)`, with the directory of
            `save_checkpoints`.
        suite: its name, as evaluators know it.

    Raises:
        TypeError: it is not a `Run`.
        ValueError: the name of the suite is not valid.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(request_evaluation(Run(f"{folder}/digits"), "full"))
    event  stage    hook                           reads  writes
    start  observe  request_evaluation/full/start
    epoch  observe  request_evaluation/full
    """
    require_run("request_evaluation", run)
    name = request_state_name(suite)
    folder = get_local_checkpoint_folder(run.directory)
    wanted: list[int] = []  # epochs whose checkpoint, or the next one, is not complete
    abandoned: dict[int, Stamp | None] = {}  # checkpoints beyond the one that is resumed

    def list_ready() -> list[int]:
        numbers = list_checkpoint_epochs(run.directory)
        return [n for n in numbers if n not in abandoned or abandoned[n] != read_stamp(folder, n)]

    def request_ready() -> None:
        """Request the evaluation of the checkpoints that have become complete."""
        if not wanted:
            return
        numbers, requested = list_ready(), set[int]()
        while wanted and (number := next((n for n in numbers if n >= wanted[0]), None)):
            if number not in requested:
                run.request_evaluation(suite, number)
                requested.add(number)
            del wanted[0]

    def resume(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        step, epoch = read_step_epoch(state)
        run.resume(epoch=epoch, step=step)
        wanted.clear()
        abandoned.clear()
        abandoned.update(
            {n: read_stamp(folder, n) for n in list_checkpoint_epochs(run.directory) if n > epoch}
        )
        number = get_hook_state(state, name, _init)["wanted"]
        if number and not _was_requested(run, suite, number, epoch, list_ready()):
            wanted.append(number)
            request_ready()
        return state

    def want(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        epoch = read_epoch(state)
        if wanted[-1:] != [epoch]:
            wanted.append(epoch)
        return set_hook_state(state, name, {"wanted": epoch})

    def request_all() -> None:
        if wanted:
            wait_for_saves()
            request_ready()

    def flush() -> None:
        """Send requests before a checkpoint, whose hook state holds only the newest wanted one."""
        request_all()
        run.flush()

    def close(error: BaseException | None) -> None:
        try:
            request_all()
            if wanted and error is None:
                log.warning(
                    "%s: no checkpoint was saved in %s since epoch %d, so no evaluation of it is "
                    "requested: the chain needs save_checkpoints on this directory",
                    name,
                    folder,
                    wanted[0],
                )
        finally:
            wanted.clear()
            run.close(error)

    return chain(
        Hook(resume, f"{name}/start", event="start", stage="observe", dry_run=SKIP),
        Hook(
            want,
            name,
            stage="observe",
            hook_states=(HookState(name, _init),),
            dry_run=SKIP,
            check_background=request_ready,
            flush=flush,
            close=close,
        ),
    )


def request_state_name(suite: str) -> str:
    """Return the name of the hook state for a suite: `{"wanted": epoch}`, 0 before the first.

    >>> request_state_name("full")
    'request_evaluation/full'
    """
    return f"request_evaluation/{check_name(suite, 'a suite')}"


def _init(state: TrainState) -> dict[str, int]:
    return {"wanted": 0}


def _was_requested(run: Run, suite: str, wanted: int, epoch: int, numbers: list[int]) -> bool:
    """Return whether a checkpoint was requested and is gone, so that no later one replaces it.

    The run resumes at `epoch`, and has checkpoints of the epochs `numbers`.
    """
    if wanted == epoch or any(wanted <= number < epoch for number in numbers):
        return False
    try:
        with contextlib.closing(StorePoller(run.url)) as poller:
            known = poller.call(list_requests, run.name)
    except OSError as error:  # one request too many is better than one too few
        log.debug("%s: whether %r was requested is not known", error, suite)
        return False
    return any(one.suite == suite and wanted <= one.epoch < epoch for one in known)
