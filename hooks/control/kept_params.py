"""Parameters kept under a name, by a hook or by the step, and the statistics that suit them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax

from trainer import TrainState
from trainer.phases.mixing_trial import find_batch_statistics
from trainer.state import PyTree
from trainer.supervised.step_averages import AVERAGE, get_average

log = logging.getLogger("entracte")


def select_params(state: TrainState, name: str | None) -> dict[str, PyTree]:
    """Return the parameters kept under a name, and the `model_state` that belongs to them.

    The name is that of a hook that keeps parameters, and perhaps a `model_state`; `average` for the
    average over steps, which raises ValueError if there is none; None for the trained ones.
    """
    selected = {"params": state.params, "model_state": state.model_state}
    if name == AVERAGE:
        return selected | {"params": get_average(state)}
    kept = {} if name is None else state.hook_state[name]
    return {part: kept.get(part, tree) for part, tree in selected.items()}


def list_required_states(name: str | None) -> tuple[str, ...]:
    """List the hook states that must exist to read the parameters kept under a name."""
    return () if name in (None, AVERAGE) else (name,)


def check_step_average(state: TrainState, name: str | None) -> None:
    """Raise ValueError, before training, if the name is `average` and the state keeps none."""
    if name == AVERAGE:
        jax.eval_shape(get_average, state.replace(hook_state={}, scores={}))


def recalibration_name(name: str) -> str:
    """Return the name of the hook that keeps these parameters with statistics that suit them."""
    return f"recalibrate/{name}"


def warn_stale_statistics(state: TrainState, name: str) -> None:
    """Warn if averaged parameters come with the batch statistics of the trained ones."""
    suiting = recalibration_name(name)
    if find_batch_statistics(state.model_state) and suiting not in state.hook_state:
        log.warning(
            "the average %r has the statistics in model_state (of batch normalisation, say) of the "
            "trained parameters, which do not suit it: place hooks.recalibrate("
            "trainer.recalibration(task, source), params=%r) behind it, and measure and keep "
            "params=%r",
            *(name, name, suiting),
        )


def warn_uncalibrated_params(state: TrainState, name: str | None) -> None:
    """Warn if the parameters kept under a name are read with statistics that do not suit them."""
    if name is None:
        return
    suiting = recalibration_name(name)
    if suiting in state.hook_state:
        log.warning(
            "the average %r is read with the statistics of the trained parameters, while %r keeps "
            "those that suit it: say params=%r",
            *(name, suiting, suiting),
        )
    elif name == AVERAGE:
        warn_stale_statistics(state, name)


def warn_once(warn: Callable[[TrainState, Any], None], name: Any) -> Callable[[TrainState], None]:
    """Return a function that calls a warning about the parameters of a name the first time only."""
    called = False

    def warn_first_time(state: TrainState) -> None:
        nonlocal called
        if not called:
            warn(state, name)
        called = True

    return warn_first_time
