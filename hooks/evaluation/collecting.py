"""Scores from elsewhere: what evaluators found of a run's commits, brought into the run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from hooks.base import get_hook_state, set_hook_state
from hooks.combining import Chain, chain
from hooks.evaluation.requesting import request_state_name
from hooks.metric_logging import read_step_epoch
from hooks.writers.database import require_run
from trainer import Hook, TrainState
from trainer.checkpoints import DamagedCheckpoint, wait_for_saves
from trainer.hook import HookState
from trainer.host.escaping import escape_text
from trainer.host.processes import from_main_process, is_main_process
from trainer.host.redaction import redact_text
from trainer.runs import Run, Unreachable
from trainer.runs.answers import Answer, list_answers
from trainer.runs.checkpoint_rows import describe_checkpoint, list_complete_epochs
from trainer.runs.store_polling import StorePoller

log = logging.getLogger("entracte")

PAUSE = 0.05
"""Seconds between two looks at the store, where an answer is waited for."""

AWAY = 30.0
"""Seconds until a store that did not answer is asked again, where none is waited for."""


class _Found(NamedTuple):
    """What the lead found at one look."""

    epoch: int = 0
    """Of the commit that was evaluated; 0 where nothing new is there."""
    scores: Mapping[str, float] = {}
    """Empty where its evaluation failed."""
    waiting: int = 0
    """Epoch of the commit whose evaluation is waited for; 0 where there is none."""


def collect_scores(
    run: Run,
    suite: str,
    *,
    scores: Sequence[str] = (),
    wait: bool = False,
    timeout: float = 600.0,
) -> Hook | Chain:
    """Bring what evaluators found into the scores, beside the epoch that it belongs to.

    At each `epoch` the newest result that has arrived, of a later commit than the one taken last,
    is scored under the names that the suite gave, and `<suite>/epoch` is the epoch of that commit;
    where nothing new has arrived, nothing is scored, and hooks that read it do not fire. Results
    that a newer one overtook stay in the store. They tell of an earlier state than the one that
    hooks see beside them: `stop_early` may read them, `keep_best` would keep other parameters than
    those that were measured.

    When results arrive depends on the world. What was taken is remembered, so that none is taken
    twice, and all else follows from it: the run is a function of what arrived when, and one that
    was interrupted may see a result at another epoch than it would have. With `wait=True` it
    is a function of its configuration alone, bit for bit, as long as the suite is and
    `save_checkpoints(..., max_cost=None)` commits at every epoch: at each event what was asked for
    at an earlier one is waited for. An evaluation that failed is told of and not waited for.

    A store that is away, or gives no answer in a second, is told of once, and asked again after
    30 s; training goes on, but for `wait=True`.

    Args:
        run: on record, `trainer.runs.Run(directory)`.
        suite: name of what is run, as in `request_evaluation`.
        scores: names of results that hooks after this one read, for the check before training. On
            several processes these alone are brought in.
        wait: wait for what `request_evaluation` asked for; it must be in the chain too.
        timeout: seconds to wait for one evaluation. A signal is acted on when the wait is over.

    Raises:
        TypeError: it is no `Run`.
        ValueError: the suite has no name that can be one; `timeout` is not positive; nothing
            requests what is to be waited for.
        TimeoutError: with `wait`, there is no result in time.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(chain(collect_scores(Run(f"{folder}/digits"), "full", scores=["full/loss"])))
    event  stage    hook                 reads  writes
    epoch  control  collect_scores/full         full/epoch, full/loss
    """
    require_run("collect_scores", run)
    requested, name = request_state_name(suite), f"collect_scores/{suite}"
    if isinstance(scores, str):
        raise ValueError(f"scores must be a sequence of names, such as ({scores!r},)")
    if not timeout > 0:
        raise ValueError(f"timeout must be positive seconds; got {timeout}")
    reader = _Reader(run, suite, retry=PAUSE if wait else AWAY)
    asked, told = set[int](), set[tuple[int, str]]()

    def arrived(taken: int, epoch: int) -> _Found:
        """Give the newest result; failures are told of."""
        found = _Found()
        for answer in reader.read(taken):
            if (answer.epoch, answer.error) in told or answer.epoch >= epoch:
                continue
            if _current(run, answer):
                tell(answer)
                found = _Found(answer.epoch, answer.scores) if answer.error is None else found
        return found

    def awaited(taken: int, wanted: int) -> _Found:
        """Give the result that is wanted, or say that it is waited for."""
        if wanted <= taken:
            return _Found()
        wait_for_saves()
        number = next((n for n in list_complete_epochs(run.directory) if n >= wanted), 0)
        if number <= taken:
            return _Found()  # none is committed
        if number not in asked:
            asked.add(number)
            if not run.ask(suite, number):  # what was asked for already stays as it is
                return _Found(number)
        for answer in reader.read(number - 1):
            if answer.epoch == number and _current(run, answer):
                tell(answer)
                return _Found(number, answer.scores)
        return _Found(waiting=number)

    def tell(answer: Answer) -> None:
        if answer.error is not None:
            told.add((answer.epoch, answer.error))
            said = escape_text(answer.error)
            log.warning("%s: the evaluation of epoch %d failed: %s", name, answer.epoch, said)

    def look(state: TrainState) -> _Found:
        if not is_main_process():
            return _Found()
        taken = get_hook_state(state, name, _nothing)["taken"]
        if not wait:
            return arrived(taken, read_step_epoch(state)[1])
        return awaited(taken, state.hook_state[requested]["wanted"])

    def collect(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        began = time.monotonic()
        while True:
            found, late = look(state), time.monotonic() - began > timeout
            values = from_main_process(_numbers(found, late, scores))
            if not values["waiting"]:
                break
            if values["late"]:
                raise TimeoutError(_missing(name, suite, run, int(values["waiting"]), timeout))
            time.sleep(PAUSE)
        epoch = int(values["epoch"])
        if not epoch:
            return state
        state = set_hook_state(state, name, {"taken": epoch})
        brought = found.scores
        if jax.process_count() > 1:
            brought = {one: values[one] for one in scores if values[f"has {one}"]}
        if not brought:
            return state
        if missing := [one for one in scores if one not in brought]:
            log.warning(
                "%s: the suite gave no %s; it gave %s",
                name,
                " and no ".join(missing),
                ", ".join(map(escape_text, brought)),
            )
        return state.replace(scores={**state.scores, **brought, f"{suite}/epoch": float(epoch)})

    def begin(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        if from_main_process({"missing": is_main_process() and requested not in state.hook_state})[
            "missing"
        ]:
            raise ValueError(
                f"{name} waits for what request_evaluation(run, {suite!r}) asks for, which is not "
                "in the chain: add it, or take what arrives, wait=False"
            )
        return state

    def close() -> None:
        asked.clear()
        told.clear()
        reader.close()

    hook = Hook(
        collect,
        name,
        writes=(f"{suite}/epoch", *scores),
        hook_states=(HookState(name, _nothing),),
        dry_run=lambda state, metrics: state,
        close=close,
    )
    return chain(Hook(begin, f"{name}/start", event="start"), hook) if wait else hook


class _Reader:
    """The answers in a store, for which training does not wait."""

    def __init__(self, run: Run, suite: str, *, retry: float) -> None:
        self._run, self._suite, self._retry = run, suite, retry
        self._onlooker = StorePoller(run.url)
        self._failed_at = -math.inf
        self._away = False

    def read(self, after: int) -> list[Answer]:
        """Give the answers for commits after an epoch; none where the store is away."""
        if time.monotonic() - self._failed_at < self._retry:
            return []
        try:
            found = self._onlooker.ask(list_answers, self._run.name, self._suite, after=after)
        except Exception as error:  # whatever it is, training goes on
            self._fail(error)
            return []
        if self._away:
            log.info("results by %r are read again", self._suite)
            self._away = False
        return found

    def _fail(self, error: Exception) -> None:
        self._failed_at = time.monotonic()
        if not self._away:
            self._away = True
            log.warning(
                "results by %r cannot be read: %s",
                self._suite,
                error,
                exc_info=None if isinstance(error, Unreachable | FileNotFoundError) else error,
            )

    def close(self) -> None:
        """End the connection; a further read makes another."""
        self._failed_at = -math.inf
        self._onlooker.close()


def _nothing(state: TrainState) -> dict[str, int]:
    return {"taken": 0}


def _numbers(found: _Found, late: bool, scores: Sequence[str]) -> dict[str, float]:
    """Give what all processes are to know, with the same names whatever was found."""
    numbers = {"epoch": float(found.epoch), "waiting": float(found.waiting), "late": float(late)}
    for name in scores:
        numbers[f"has {name}"] = name in found.scores
        numbers[name] = found.scores.get(name, 0.0)
    return numbers


def _current(run: Run, answer: Answer) -> bool:
    """Say whether an answer is of this run's commit, not of one that was there before it.

    The store may not know yet that the run began afresh. A commit that is gone has a newer one.
    """
    try:
        return describe_checkpoint(run.directory, answer.epoch).checksum == answer.checksum
    except DamagedCheckpoint:
        return max(list_complete_epochs(run.directory), default=0) > answer.epoch


def _missing(name: str, suite: str, run: Run, epoch: int, timeout: float) -> str:
    return (
        f"{name} waited {timeout:g} s for the evaluation of epoch {epoch} of run {run.name!r} by "
        f"{suite!r}, and it is not in the store {redact_text(run.url)}: an evaluator of this suite "
        "must be running, python -m trainer evaluate; or give it longer, timeout=..., or take "
        "what arrives, wait=False"
    )
