"""Parameters kept under a name: by a hook, or within the step; and what belongs to them."""

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
    """Give the parameters of a name, and the `model_state` that belongs to them.

    Args:
        state: that keeps them.
        name: of a hook that keeps parameters, `average` for the average over steps, None for the
            trained ones. What a hook keeps of `model_state` comes with them.

    Raises:
        ValueError: the state keeps no average over steps.
    """
    own = {"params": state.params, "model_state": state.model_state}
    if name is None:
        return own
    if name == AVERAGE:
        return {**own, "params": get_average(state)}
    return {
        **own,
        **{part: state.hook_state[name][part] for part in own if part in state.hook_state[name]},
    }


def list_required_states(name: str | None) -> tuple[str, ...]:
    """Name the memories that must be there for parameters of a name."""
    return () if name in (None, AVERAGE) else (name,)


def check_step_average(state: TrainState, name: str | None) -> None:
    """Check, before training, that a state keeps the average over steps where that is the name.

    Raises:
        ValueError: the state keeps no average over steps.
    """
    if name == AVERAGE:
        jax.eval_shape(get_average, state.replace(hook_state={}, scores={}))


def recalibration_name(name: str) -> str:
    """Name the hook that keeps parameters of a name with statistics that suit them."""
    return f"recalibrate/{name}"


def warn_stale_statistics(state: TrainState, name: str) -> None:
    """Say that averaged parameters have the batch statistics of the trained ones, if it is so."""
    if (
        find_batch_statistics(state.model_state)
        and recalibration_name(name) not in state.hook_state
    ):
        log.warning(
            "the average %r has the statistics in model_state (of batch normalisation, say) of the "
            "trained parameters, which do not suit it: place hooks.recalibrate("
            "trainer.recalibration(task, source), params=%r) behind it, and measure and keep "
            "params=%r",
            name,
            name,
            recalibration_name(name),
        )


def warn_uncalibrated_params(state: TrainState, name: str | None) -> None:
    """Say that parameters of a name are read with statistics that do not suit them, if it is so."""
    if name is None:
        return
    suiting = recalibration_name(name)
    if suiting in state.hook_state:
        log.warning(
            "the average %r is read with the statistics of the trained parameters, while %r keeps "
            "those that suit it: say params=%r",
            name,
            suiting,
            suiting,
        )
    elif name == AVERAGE:
        warn_stale_statistics(state, name)


def warn_once(warn: Callable[[TrainState, Any], None], name: Any) -> Callable[[TrainState], None]:
    """Make of a warning about parameters of a name one that is given the first time alone."""
    given = False

    def first(state: TrainState) -> None:
        nonlocal given
        if not given:
            warn(state, name)
        given = True

    return first


def select_carry(carry: Any, names: tuple[str, ...]) -> dict[str, PyTree]:
    """Give what in `carry` belongs to parameters, of these names, where it is there."""
    return {name: carry[name] for name in names if isinstance(carry, dict) and name in carry}
