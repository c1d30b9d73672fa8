"""Evaluation between epochs: exact scores of a whole split, under the phase's name."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from hooks.combining import Chain, chain
from hooks.metrics import counts
from trainer import Hook, Phase, TrainState
from trainer.phases import Measured
from trainer.rehearsal import first_step

log = logging.getLogger("entracte")


def evaluate(phase: Phase, *, params: str | None = None, sanity: bool = False) -> Hook | Chain:
    """Measure a split and write its scores, such as `val/loss` and `val/accuracy`.

    The phase is compiled once, whatever else changes, and never takes the state's buffers. For
    several splits there are several of these, whose phases have names of their own.

    Args:
        phase: made by `trainer.evaluation`; its name is the prefix of the scores.
        params: name of a hook that keeps parameters, such as `average_params`, to measure in the
            place of the trained ones. It must stand before this one.
        sanity: measure it at the `start` of a fresh run too, before anything is trained: the scores
            are logged, and `log_metrics` records them at step 0. A run that goes on repeats
            nothing.

    Raises:
        ValueError: the phase changes the state; before training, with `sanity`, a score is not
            finite.
    """
    if phase.changes:
        raise ValueError(
            f"evaluate needs a phase that leaves the state as it is, made by trainer.evaluation; "
            f"phase {phase.name!r} may change it"
        )
    name = f"evaluate/{phase.name}"

    def names(state: TrainState) -> tuple[str, ...]:
        keys = phase.keys(state)
        phase.verify(state)
        return keys

    def chosen(state: TrainState) -> TrainState:
        return state if params is None else state.replace(params=state.memory[params]["params"])

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        _, _, measured = phase.execute(chosen(state), None, donate=False)
        return _scored(state, measured)

    def rehearse(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        return _scored(state, first_step(phase, chosen(state))[2])

    def leave(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        return state  # the start comes right after the check

    def begin(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        if counts(state)[1]:
            return state
        after = run(state, metrics)
        measured = (key for key in phase.keys(state) if key in after.scores)
        _check_finite(name, {key: after.scores[key] for key in measured})
        return after

    needs = (params,) if params else ()
    hook = Hook(run, name, writes=names, needs=needs, rehearse=rehearse)
    if not sanity:
        return hook
    return chain(Hook(begin, f"{name}/start", event="start", writes=names, rehearse=leave), hook)


def _scored(state: TrainState, measured: Measured) -> TrainState:
    scores, _, _ = measured.read()
    return state.replace(scores={**state.scores, **scores})


def _check_finite(name: str, scores: Mapping[str, float]) -> None:
    """Log what was measured before training; refuse to train on what is not finite."""
    if wrong := [f"{key} is {score}" for key, score in scores.items() if not math.isfinite(score)]:
        raise ValueError(
            f"hook {name!r} measures the state before training, and its scores must be finite; "
            f"{', '.join(wrong)}: look at the parameters to begin with, and at the data"
        )
    shown = ", ".join(f"{key} {score:.4g}" for key, score in scores.items())
    log.info("before training: %s", shown)
