"""Evaluate a whole split between epochs: exact scores, under the phase's name."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from hooks.combining import Chain, chain
from hooks.control.kept_params import (
    check_step_average,
    list_required_states,
    select_params,
    warn_once,
    warn_uncalibrated_params,
)
from hooks.evaluation.collecting import collect_scores
from hooks.evaluation.requesting import request_evaluation
from trainer import Hook, Phase, TrainState
from trainer.checks.arguments import describe_value
from trainer.data import Arrays
from trainer.hook import SKIP
from trainer.host.computed_once import ComputedOnce
from trainer.loop.dry_run import run_first_step
from trainer.phases.buffers.state_buffers import has_same_arrays
from trainer.phases.dispatch import Dispatch
from trainer.phases.host_metrics.pending_metrics import PendingMetrics
from trainer.runs import Run
from trainer.state import PyTree, read_epoch

log = logging.getLogger("entracte")


def evaluate(
    phase: Phase | str,
    *,
    params: str | None = None,
    sanity: bool = False,
    remote: Run | None = None,
    scores: Sequence[str] = (),
    wait: bool = False,
) -> Hook | Chain:
    """Evaluate a split and write its scores, such as `val/loss` and `val/accuracy`.

    The phase is compiled once, whatever else changes, and never reuses the state's buffers. For
    several splits, use several of these hooks, whose phases have different names.

    With `remote`, evaluators elsewhere run a suite over the run's checkpoints, and their scores are
    added when they arrive: `request_evaluation` and `collect_scores` in one.

    Args:
        phase: from `trainer.evaluation`; its name is the prefix of the scores. With `remote`, the
            name of a suite, as evaluators know it.
        params: name of a hook before this one that keeps parameters, such as `average_params`, to
            evaluate instead of the trained ones, with the `model_state` that it keeps, as
            `recalibrate` does; `average`: those that `supervised(..., average=0.999)` keeps.
        sanity: evaluate at the `start` of a fresh run too, before any training: the scores are
            logged, and `log_metrics` records them at step 0. A run that resumes does not repeat it.
        remote: a recorded run, `trainer.runs.Run(directory)`, whose checkpoints are evaluated.
        scores: with `remote`, names of results that hooks after this one read.
        wait: with `remote`, wait for each result at the next event, see `collect_scores`.

    Raises:
        TypeError: these do not go together: a phase runs here, a suite runs elsewhere.
        ValueError: the phase changes the state; before training, with `sanity`, a score is not
            finite.
    """
    if remote is not None:
        if not isinstance(phase, str) or params is not None or sanity:
            raise TypeError(
                "evaluate(..., remote=run) takes the name of a suite, and neither params nor "
                "sanity: evaluators run it over checkpoints. A phase runs here, without remote; "
                f"got {phase if isinstance(phase, str) else type(phase).__name__!r}"
            )
        collecting = collect_scores(remote, phase, scores=scores, wait=wait)
        return chain(request_evaluation(remote, phase), collecting)
    if not isinstance(phase, Phase) or scores or wait:
        known = isinstance(phase, str | Phase)
        remedy = "" if known else ": make one, trainer.evaluation(task.measure, source)"
        raise TypeError(
            "evaluate takes a phase made by trainer.evaluation, or the name of a suite and "
            "remote=trainer.runs.Run(directory), with which scores and wait go; got "
            f"{describe_value(phase)} without remote{remedy}"
        )
    if phase.updates_state:
        raise ValueError(
            "evaluate needs a phase that leaves the state as it is, made by trainer.evaluation; "
            f"phase {phase.name!r} may change it"
        )
    name = f"evaluate/{phase.name}"
    warn = warn_once(warn_uncalibrated_params, params)
    required = list_required_states(params)
    prepared: dict[int, tuple[TrainState, Dispatch[tuple[TrainState, PyTree, PendingMetrics]]]] = {}

    def list_names(state: TrainState) -> tuple[str, ...]:
        check_step_average(state, params)
        keys = phase.list_metric_names(state)
        phase.verify(state)
        return keys

    def with_params(state: TrainState) -> TrainState:
        return state if params is None else state.replace(**select_params(state, params))

    def dispatch(state: TrainState) -> Dispatch[tuple[TrainState, PyTree, PendingMetrics]]:
        return Dispatch(phase.dispatch(with_params(state), None, donate=False))

    def prepare(state: TrainState) -> None:
        if not required:  # else a hook before this one has yet to update the parameters
            early = dispatch(state)
            early.begin()
            prepared[threading.get_ident()] = state, early  # runs in other threads have their own

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        warn(state)
        before, early = prepared.pop(threading.get_ident(), (None, None))
        if early is None or before is None or not has_same_arrays(before, state):
            early = dispatch(state)
        return _add_scores(state, early.finish()[2])

    def lower(state: TrainState) -> ComputedOnce[Any]:
        example = phase.feed.example if phase.feed else None
        return phase.lower(with_params(state), example, donate=False)

    def close(error: BaseException | None) -> None:
        prepared.pop(threading.get_ident(), None)  # of an event that an error has ended

    def dry_run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        return _add_scores(state, run_first_step(phase, with_params(state))[2])

    def check_start(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        if read_epoch(state):
            return state
        after = run(state, metrics)
        measured = [key for key in phase.list_metric_names(state) if key in after.scores]
        scores = {key: after.scores[key] for key in measured}
        if wrong := ", ".join(f"{k} is {v}" for k, v in scores.items() if not math.isfinite(v)):
            raise ValueError(
                f"hook {name!r} measures the state before training, and its scores must be finite; "
                f"{wrong}: check the initial parameters, and the data"
            )
        log.info("before training: %s", ", ".join(f"{k} {v:.4g}" for k, v in scores.items()))
        return after

    hook = Hook(
        run,
        name,
        writes=list_names,
        required_hook_states=required,
        prepare=prepare,
        prepare_waits=not isinstance(phase.source, Arrays),
        dry_run=dry_run,
        lower=lower,
        close=close,
    )
    if not sanity:
        return hook
    start = Hook(check_start, f"{name}/start", event="start", writes=list_names, dry_run=SKIP)
    return chain(start, hook)


def _add_scores(state: TrainState, measured: PendingMetrics) -> TrainState:
    scores, _, _ = measured.read()
    return state.replace(scores={**state.scores, **scores})
