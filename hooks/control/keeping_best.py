"""The best parameters of a run, kept in the hook state and restored at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hooks.base import stateful
from hooks.combining import Chain, chain
from hooks.control.kept_params import (
    check_step_average,
    list_required_states,
    select_params,
    warn_once,
    warn_uncalibrated_params,
)
from trainer import Hook, TrainState
from trainer.checks.modes import improvement, resolve_mode, worst
from trainer.hook import get_hook_state
from trainer.state import PyTree

log = logging.getLogger("entracte")

NORMALIZATION = "normalization"
"""Where `state.carry` keeps the statistics that normalise a policy's observations and rewards."""


def keep_best(
    metric: str,
    *,
    mode: str | None = None,
    params: str | None = None,
    carry: Sequence[str] = (NORMALIZATION,),
) -> Chain:
    """Keep the parameters of the best epoch and what belongs to them, and restore it at the end.

    What belongs to them is `model_state` and the named parts of `carry`. All is kept on the device
    at `state.hook_state["keep_best/<metric>"]` and saved with the state. `fit` returns what is
    restored, but the checkpoint keeps the last epoch's state, so a longer run continues from there.
    The optimizer's state is not restored, and an interrupt restores nothing. NaN is never the best.

    Args:
        metric: to compare by, such as `val/loss`.
        mode: `min` if smaller is better, `max` if larger is; None goes by the metric's name.
        params: name of a hook before this one, such as `average_params`, whose parameters and
            `model_state` to keep; the metric must be measured with them. `average` is the average
            over steps that `supervised(..., average=0.999)` keeps.
        carry: names in `state.carry` of what else to keep: by default the statistics that normalise
            a policy's observations and rewards. Names that a state does not have are ignored.

    Raises:
        ValueError: the mode is unknown, or missing although the name does not tell it.

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
    carry = tuple(carry)
    warn = warn_once(warn_uncalibrated_params, params)

    def select(state: TrainState, params: str | None) -> dict[str, PyTree]:
        there = state.carry if isinstance(state.carry, dict) else {}
        parts = {part: there[part] for part in carry if part in there}
        return {**select_params(state, params), "carry": parts}

    def init(state: TrainState) -> dict[str, Any]:
        check_step_average(state, params)
        return {"value": worst(mode), "epoch": -1, **select(state, None)}

    def update(
        best: dict[str, Any], state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[dict[str, Any], TrainState]:
        warn(state)
        value = float(metrics[metric])
        if not improvement(best["value"], value, mode) > 0:
            return best, state
        return {"value": value, "epoch": int(state.epoch), **_copy(select(state, params))}, state

    def restore(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        best = get_hook_state(state, name, init)
        if best["epoch"] < 0:
            return state
        message = "restored the parameters of epoch %d: %s was %.6g"
        log.info(message, best["epoch"], metric, best["value"])
        parts = {"params": best["params"], "model_state": best["model_state"]}
        if best["carry"]:
            parts["carry"] = {**state.carry, **best["carry"]}
        return state.replace(**parts)

    required = list_required_states(params)
    keep = stateful(
        name, init, update, event="epoch", reads=(metric,), required_hook_states=required
    )
    return chain(keep, Hook(restore, f"{name}/end", event="end"))


@jax.jit
def _copy(tree: PyTree) -> PyTree:
    """Copy all leaves in one call: one by one they take 20 us each."""
    return jax.tree.map(jnp.copy, tree)
