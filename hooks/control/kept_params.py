"""Parameters kept under a name, by a hook or by the step, and the statistics that suit them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
    """Warn that averaged parameters come with the batch statistics of the trained ones."""
    suiting = recalibration_name(name)
    if suiting not in state.hook_state:
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
    """Return a function, called after each epoch, that may warn of statistics after the second.

    It calls the warning, with the name, if `model_state` holds numbers that training changes. Those
    that it leaves as they are, such as the base under adapters, are no statistics.
    """
    calls, before = 0, np.zeros(0)

    def watch(state: TrainState) -> None:
        nonlocal calls, before
        calls += 1
        if calls > 2 or not find_batch_statistics(state.model_state):
            return
        sums = np.asarray(_sum_numbers(state.model_state))
        if calls == 2 and not np.array_equal(sums, before):
            warn(state, name)
        before = sums

    return watch


@jax.jit
def _sum_numbers(tree: PyTree) -> jax.Array:
    """Sum each array of floating-point numbers, float32 `[arrays]`."""
    numbers = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([x.sum(dtype=jnp.float32) for x in numbers])
