"""Averages of the parameters over epochs, kept in the hook state, and statistics that suit them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hooks.base import stateful
from hooks.control.kept_params import (
    check_step_average,
    list_required_states,
    recalibration_name,
    select_params,
    warn_once,
    warn_stale_statistics,
)
from trainer import Hook, Phase, TrainState, recalibrate_batch_stats
from trainer.checks.arguments import require_integer, require_number
from trainer.state import read_epoch
from trainer.supervised.step_averages import AVERAGE

Weigh = Callable[[int, TrainState], tuple[int, float]]
"""`(updates so far, state) -> (updates with this one, weight of the current parameters)`."""


def average_params(decay: float = 0.9, *, name: str = "average_params") -> Hook:
    """Keep an exponential moving average of the parameters, updated once an epoch, bias corrected.

    The average is at `state.hook_state[name]["params"]`. Training never sees it.
    `evaluate(phase, params=name)` measures it.

    Args:
        decay: weight of the past at each update, in [0, 1).
        name: of the hook and its hook state.

    Raises:
        ValueError: the decay is outside [0, 1).

    Source: B. Polyak and A. Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992;
    bias correction as in D. Kingma and J. Ba, Adam, 2015, section 3.

    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> hook = average_params(0.5)
    >>> state = hook(state, {}).replace(params={"w": jnp.zeros(2)})
    >>> hook(state, {}).hook_state["average_params"]["params"]["w"]    # (0.5 * 1 + 1 * 0) / 1.5
    Array([0.3333333, 0.3333333], dtype=float32)
    """
    decay = require_number("decay", decay)
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1); got {decay}")

    def weigh(updates: int, state: TrainState) -> tuple[int, float]:
        return updates + 1, (1 - decay) / (1 - decay ** (updates + 1))

    return _make_average_hook(name, weigh)


def swa(*, start: int, name: str = "swa") -> Hook:
    """Keep the mean of the parameters over epochs: stochastic weight averaging.

    The parameters after each epoch from `start` on have the same weight; before, the mean is the
    current ones. It is at `state.hook_state[name]["params"]`, and training never sees it.
    `evaluate(phase, params=name)` measures it.

    If the network keeps batch statistics, they are those of the trained parameters and do not suit
    the mean: place `recalibrate(trainer.recalibration(task, source), params="swa")` after this
    hook, and pass `params="recalibrate/swa"` to `evaluate` and `keep_best`.

    Args:
        start: the first epoch to average, counted from 1; choose one where the learning rate is
            large and constant, or ends a cycle.
        name: of the hook and its hook state.

    Raises:
        ValueError: `start` is below 1.

    Source: P. Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization,
    2018, algorithm 1.

    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> hook = swa(start=2)
    >>> for epoch, value in enumerate([9.0, 1.0, 2.0], 1):
    ...     state = state.replace(epoch=jnp.int32(epoch), params={"w": jnp.full(2, value)})
    ...     state = hook(state, {})
    >>> state.hook_state["swa"]["params"]["w"]    # (1 + 2) / 2
    Array([1.5, 1.5], dtype=float32)
    """
    require_integer("start, the first epoch that counts,", start, 1)

    def weigh(updates: int, state: TrainState) -> tuple[int, float]:
        updates += read_epoch(state) >= start
        return updates, 1 / max(updates, 1)

    return _make_average_hook(name, weigh)


def recalibrate(phase: Phase, *, params: str) -> Hook:
    """Compute the batch statistics of averaged parameters, and keep both.

    They are at `state.hook_state["recalibrate/<params>"]`, as `params` and `model_state`. Training
    never sees them; `evaluate` and `keep_best` do, with `params="recalibrate/swa"`. It costs a
    forward pass over the data: `every(5, chain(recalibrate(...), evaluate(...)))` makes fewer.

    Args:
        phase: made by `trainer.recalibration(task, source)`; it is compiled once.
        params: name of a hook that keeps an average, such as `swa`, which must stand before this
            one; or `average`, for that of `supervised(..., average=0.999)`.

    Raises:
        TypeError: the phase is not one.
        ValueError: before training, the state keeps no such average.

    Source: P. Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization,
    2018, section 3.2.
    """
    if not isinstance(phase, Phase) or not phase.updates_state:
        raise TypeError(
            "recalibrate takes a phase made by trainer.recalibration(task, source); got "
            f"{phase!r:.100}"
        )

    def init(state: TrainState) -> dict[str, Any]:
        check_step_average(state, params)
        phase.verify(state)
        return {"params": state.params, "model_state": state.model_state}

    def update(
        kept: dict[str, Any], state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[dict[str, Any], TrainState]:
        averaged = state.replace(**select_params(state, params))
        found = recalibrate_batch_stats(averaged, phase)
        return {"params": found.params, "model_state": found.model_state}, state

    required = list_required_states(params)
    return stateful(recalibration_name(params), init, update, required_hook_states=required)


def _make_average_hook(name: str, weigh: Weigh) -> Hook:
    if name == AVERAGE:
        raise ValueError(
            f"the name {AVERAGE!r} is that of the average over steps, which supervised(..., "
            "average=0.999) keeps; give the hook another"
        )
    warn = warn_once(warn_stale_statistics, name)

    def init(state: TrainState) -> dict[str, Any]:
        return {"params": state.params, "updates": 0}

    def update(
        average: dict[str, Any], state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[dict[str, Any], TrainState]:
        warn(state)
        updates, weight = weigh(average["updates"], state)
        params = _move_toward(average["params"], state.params, np.float32(weight))
        return {"params": params, "updates": updates}, state

    return stateful(name, init, update)


@jax.jit
def _move_toward(average: Any, params: Any, weight: jax.Array) -> Any:
    """Move an average toward parameters; a weight of 1 replaces it exactly."""

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(new.dtype, jnp.inexact):
            return new
        # The average has the dtype of the parameters: bfloat16 rounds off small updates.
        return jnp.where(weight == 1, new, old + weight.astype(new.dtype) * (new - old))

    return jax.tree.map(move, average, params)
