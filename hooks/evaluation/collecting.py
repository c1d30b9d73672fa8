"""Remote scores: bring what evaluators measured of a run's checkpoints into the run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from hooks.combining import Chain, chain
from hooks.evaluation.requesting import request_state_name
from hooks.writers.database import require_run
from trainer import Hook, TrainState
from trainer.checkpoints import DamagedCheckpoint, wait_for_saves
from trainer.hook import SKIP, HookState, get_hook_state, set_hook_state
from trainer.host.escaping import escape_text
from trainer.host.processes import from_main_process, is_main_process
from trainer.host.redaction import redact_text
from trainer.runs import Run
from trainer.runs.requests import Answer, list_answers
from trainer.runs.run_directory import describe_checkpoint, list_checkpoint_epochs
from trainer.runs.store_client import StorePoller
from trainer.state import read_epoch

log = logging.getLogger("entracte")

WAIT_SECONDS = 0.05
"""Seconds between two looks at the store while waiting for an answer."""

RETRY_SECONDS = 30.0
"""Seconds until a store that did not answer is read again, unless an answer is waited for."""


class _Found(NamedTuple):
    """What the main process found in the store."""

    epoch: int = 0
    """Of the checkpoint that was evaluated; 0 if there is nothing new."""
    scores: Mapping[str, float] = {}
    """Empty if its evaluation failed."""
    waiting: int = 0
    """Epoch of the checkpoint whose evaluation is waited for; 0 if there is none."""


def collect_scores(
    run: Run,
    suite: str,
    *,
    scores: Sequence[str] = (),
    wait: bool = False,
    timeout: float = 600.0,
) -> Hook | Chain:
    """Add the results of evaluators to the scores, with the epoch that they belong to.

    At each `epoch`, this hook takes the newest result for a later checkpoint than the last one
    taken, and adds its scores, under the suite's names, and `<suite>/epoch`, the epoch of that
    checkpoint. If there is none, it adds nothing, and hooks that read the scores do not fire. The
    scores belong to an earlier state than the one that hooks see: `stop_early` may read them, but
    `keep_best` would keep other parameters than those that were evaluated.

    Results arrive at unpredictable times. The hook state holds which one was taken last, so that
    none is taken twice. An interrupted run may see a result at another epoch than it would have.
    With `wait=True`, each event waits for the result that was requested at an earlier one, and the
    run is reproducible bit for bit, if the suite is and `save_checkpoints(..., max_cost=None)`
    saves at every epoch. An evaluation that failed is logged and not waited for.

    A store that is away, or does not answer within a second, is logged once, and read again after
    30 s; training continues, except with `wait=True`.

    Args:
        run: a recorded run, `trainer.runs.Run(directory)`.
        suite: its name, as in `request_evaluation`.
        scores: names of results that hooks after this one read, for the check before training. On
            several processes only these are added.
        wait: wait for what `request_evaluation` requested; it must be in the chain too.
        timeout: seconds to wait for one evaluation. A signal takes effect when the wait is over.

    Raises:
        TypeError: it is not a `Run`.
        ValueError: the suite's name or `timeout` is not valid; nothing requests what is waited for.
        TimeoutError: with `wait`, no result arrives in time.

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
    results = _Results(run, suite, name, retry=WAIT_SECONDS if wait else RETRY_SECONDS)

    def look(state: TrainState) -> _Found:
        if not is_main_process():
            return _Found()
        taken = get_hook_state(state, name, _init)["taken"]
        if not wait:
            return results.find_newest(taken, read_epoch(state))
        return results.find_wanted(taken, state.hook_state[requested]["wanted"])

    def collect(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        began = time.monotonic()
        while True:
            found, late = look(state), time.monotonic() - began > timeout
            values = from_main_process(_to_numbers(found, late, scores))
            if not values["waiting"]:
                break
            if values["late"]:
                raise TimeoutError(
                    f"{name} waited {timeout:g} s for the evaluation of epoch "
                    f"{values['waiting']:.0f} of run {run.name!r} by {suite!r}, and it is not in "
                    f"the store {redact_text(run.url)}: an evaluator of this suite must be "
                    "running, entracte evaluate; or wait longer, timeout=..., or take "
                    "what arrives, wait=False"
                )
            time.sleep(WAIT_SECONDS)
        if not (epoch := int(values["epoch"])):
            return state
        state = set_hook_state(state, name, {"taken": epoch})
        added = found.scores
        if jax.process_count() > 1:
            added = {one: values[one] for one in scores if values[f"has {one}"]}
        if not added:
            return state
        if missing := " and no ".join(one for one in scores if one not in added):
            measured = ", ".join(map(escape_text, added))
            log.warning("%s: the suite measured no %s; it measured %s", name, missing, measured)
        return state.replace(scores={**state.scores, **added, f"{suite}/epoch": float(epoch)})

    def check_requested(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        missing = is_main_process() and requested not in state.hook_state
        if from_main_process({"missing": missing})["missing"]:
            raise ValueError(
                f"{name} waits for what request_evaluation(run, {suite!r}) requests, which is not "
                "in the chain: add it, or take what arrives, wait=False"
            )
        return state

    hook = Hook(
        collect,
        name,
        writes=(f"{suite}/epoch", *scores),
        hook_states=(HookState(name, _init),),
        dry_run=SKIP,
        close=lambda error: results.close(),
    )
    return chain(Hook(check_requested, f"{name}/start", event="start"), hook) if wait else hook


class _Results:
    """Results of evaluators in the store, read without making training wait for it."""

    def __init__(self, run: Run, suite: str, hook: str, *, retry: float) -> None:
        self._run, self._suite, self._hook, self._retry = run, suite, hook, retry
        self._poller = StorePoller(run.url)
        self._failed_at = -math.inf
        self._requested, self._failures = set[int](), set[tuple[int, str]]()

    def find_newest(self, taken: int, epoch: int) -> _Found:
        """Find the newest result; failures are logged."""
        found = _Found()
        for answer in self._read(taken):
            if (answer.epoch, answer.error) in self._failures or answer.epoch >= epoch:
                continue
            if self._is_current(answer) and answer.error is None:
                found = _Found(answer.epoch, answer.scores)
        return found

    def find_wanted(self, taken: int, wanted: int) -> _Found:
        """Find the result of the wanted epoch, or return that it is waited for."""
        if wanted <= taken:
            return _Found()
        wait_for_saves()
        epochs = list_checkpoint_epochs(self._run.directory)
        epoch = next((number for number in epochs if number >= wanted), 0)
        if epoch <= taken:
            return _Found()  # no checkpoint is complete yet
        if epoch not in self._requested:
            self._requested.add(epoch)
            if not self._run.request_evaluation(self._suite, epoch):  # changes no earlier request
                return _Found(epoch)
        for answer in self._read(epoch - 1):
            if answer.epoch == epoch and self._is_current(answer):
                return _Found(epoch, answer.scores)
        return _Found(waiting=epoch)

    def _read(self, after: int) -> list[Answer]:
        """Return the answers for checkpoints after an epoch; none if the store is away."""
        if time.monotonic() - self._failed_at < self._retry:
            return []
        try:
            return self._poller.call(list_answers, self._run.name, self._suite, after=after)
        except Exception as error:  # whatever it is, training continues
            self._failed_at = time.monotonic()
            self._poller.log_failure(error, f"results by {self._suite!r} cannot be read")
            return []

    def _is_current(self, answer: Answer) -> bool:
        """Return whether an answer belongs to this run, not to an earlier one; log a failure."""
        folder = self._run.directory  # the store may not know yet that the run started fresh
        try:
            current = describe_checkpoint(folder, answer.epoch).checksum == answer.checksum
        except DamagedCheckpoint:  # if it was removed, there is a newer one
            current = max(list_checkpoint_epochs(folder), default=0) > answer.epoch
        if current and answer.error is not None:
            self._failures.add((answer.epoch, answer.error))
            what = f"{self._hook}: the evaluation of epoch {answer.epoch} failed"
            log.warning("%s: %s", what, escape_text(answer.error))
        return current

    def close(self) -> None:
        """Forget what was logged, and close the connection; a further look opens another."""
        self._requested.clear()
        self._failures.clear()
        self._failed_at = -math.inf
        self._poller.close()


def _init(state: TrainState) -> dict[str, int]:
    return {"taken": 0}


def _to_numbers(found: _Found, late: bool, scores: Sequence[str]) -> dict[str, float]:
    """Return what all processes must know, with the same names whatever was found."""
    numbers = {"epoch": float(found.epoch), "waiting": float(found.waiting), "late": float(late)}
    for name in scores:
        numbers[f"has {name}"] = name in found.scores
        numbers[name] = found.scores.get(name, 0.0)
    return numbers
