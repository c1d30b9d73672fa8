"""The best parameters of a run, kept in memory and put back at its end."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hooks.base import get_hook_state, stateful
from hooks.combining import Chain, chain
from hooks.control.kept_params import (
    check_step_average,
    list_required_states,
    select_carry,
    select_params,
    warn_once,
    warn_uncalibrated_params,
)
from trainer import Hook, TrainState
from trainer.checks.modes import improvement, resolve_mode, worst
from trainer.state import PyTree

log = logging.getLogger("entracte")

NORMALIZATION = "normalization"
"""Where `state.carry` keeps the statistics by which a policy sees."""


def keep_best(
    metric: str,
    *,
    mode: str | None = None,
    params: str | None = None,
    carry: Sequence[str] = (NORMALIZATION,),
) -> Chain:
    """Remember the best epoch's parameters and what belongs to them, and put it back at the end.

    That is `model_state` and, of `carry`, what is named: the statistics by which a policy's
    observations and rewards are normalised, where it has them. All is at
    `state.hook_state["keep_best/<metric>"]`, on the device, and saved with the state, so that a
    resumed run knows it. What is put back is returned by `fit` and not committed: a longer run goes
    on from where training was. The optimizer's state is not put back. On an interrupt nothing is. A
    value that is not a number is never the best; where the metric is missing, nothing is compared.

    Args:
        metric: to compare by, such as `val/loss`.
        mode: `min` if smaller is better, `max` if larger is; None goes by the metric's name.
        params: name of a hook that keeps parameters, such as `average_params`, to remember in the
            place of the trained ones, with the `model_state` that it keeps: the one that the
            metric was measured with. It must stand before this one. `average` is the average over
            steps that `supervised(..., average=0.999)` keeps.
        carry: names in `state.carry` of what else belongs to the parameters; what a state does not
            have is left out.

    Raises:
        ValueError: an unknown mode, or one that the name does not tell.

    >>> state = TrainState.create(params={"w": jnp.zeros(2)}, rng=jax.random.key(0))
    >>> hook = keep_best("val/loss")
    >>> for loss, value in [(0.5, 1.0), (0.3, 2.0), (0.4, 3.0)]:
    ...     state = hook(state.replace(params={"w": jnp.full(2, value)}), {"val/loss": loss})
    >>> hook(state, {}, "end").params["w"].tolist()
    [2.0, 2.0]
    """
    mode = resolve_mode("keep_best", metric, mode)
    name = f"keep_best/{metric}"

    if isinstance(carry, str):
        raise ValueError(f"carry must be a sequence of names, such as ({carry!r},)")
    warn = warn_once(warn_uncalibrated_params, params)

    def kept(state: TrainState, params: str | None) -> dict[str, PyTree]:
        found = select_params(state, params)
        return {**found, "carry": select_carry(state.carry, tuple(carry))}

    def init(state: TrainState) -> dict[str, Any]:
        check_step_average(state, params)
        return {"value": worst(mode), "epoch": -1, **kept(state, None)}

    def update(
        memory: dict[str, Any], state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[dict[str, Any], TrainState]:
        warn(state)
        value = float(metrics[metric])
        if not improvement(memory["value"], value, mode) > 0:
            return memory, state
        return {"value": value, "epoch": int(state.epoch), **_copied(kept(state, params))}, state

    def put_back(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        memory = get_hook_state(state, name, init)
        if memory["epoch"] < 0:
            return state
        log.info(
            "put back the parameters of epoch %d: %s was %.6g",
            memory["epoch"],
            metric,
            memory["value"],
        )
        found = {"params": memory["params"], "model_state": memory["model_state"]}
        if memory["carry"]:
            found["carry"] = {**state.carry, **memory["carry"]}
        return state.replace(**found)

    return chain(
        dataclasses.replace(
            stateful(name, init, update),
            event="epoch",
            reads=(metric,),
            required_hook_states=list_required_states(params),
        ),
        Hook(put_back, f"{name}/end", event="end"),
    )


@jax.jit
def _copied(tree: PyTree) -> PyTree:
    """Copy all leaves in one call: one by one they take 20 us each."""
    return jax.tree.map(jnp.copy, tree)
