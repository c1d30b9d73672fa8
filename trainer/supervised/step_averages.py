"""Averages of the parameters over optimizer steps, updated within the jitted step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from trainer.state import PyTree, TrainState
from trainer.supervised.precision import cast_like

AVERAGE = "average"
"""The key of the average in `state.carry`, and its name in hooks' settings."""


def init_average(params: PyTree) -> dict[str, Any]:
    """Start an average at parameters, in float32 at least and in new buffers."""
    return {"params": jax.tree.map(_to_float32, params), "updates": jnp.zeros((), jnp.int32)}


def update_average(
    average: dict[str, Any], params: PyTree, decay: float, counts: jax.Array | None
) -> dict[str, Any]:
    """Add the parameters after a step to an average, bias corrected as Adam's moments are.

    `decay`, in [0, 1), is the weight of the past. `counts`, () bool, is whether the step changed
    the parameters; None: it did. It does not without weights, or where gradients overflow.

    >>> average = init_average({"w": jnp.ones(2)})
    >>> for value in (1.0, 0.0):
    ...     average = update_average(average, {"w": jnp.full(2, value)}, 0.5, None)
    >>> average["params"]["w"]    # (0.5 * 1 + 1 * 0) / 1.5
    Array([0.3333333, 0.3333333], dtype=float32)
    """
    updates = average["updates"] + 1
    past = jnp.float32(math.log(decay) if decay else -math.inf)
    weight = (1 - decay) / -jnp.expm1(updates * past)  # 1 - decay**updates, to float32's precision

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        new = _to_float32(new)
        if jnp.issubdtype(new.dtype, jnp.inexact):
            toward = old + weight.astype(new.dtype) * (new - old)
            new = jnp.where(updates == 1, new, toward)
        return new if counts is None else jnp.where(counts, new, old)

    if counts is not None:
        updates = jnp.where(counts, updates, average["updates"])
    params = jax.tree.map(move, average["params"], params)
    return {"params": params, "updates": updates}


def get_average(state: TrainState) -> PyTree:
    """Return the average of `supervised(..., average=...)`, in the parameters' dtypes.

    Raises:
        ValueError: the state keeps none.
    """
    require_average(state, f"params={AVERAGE!r}")
    return cast_like(state.carry[AVERAGE]["params"], state.params)


def require_average(state: TrainState, who: str) -> None:
    """Check that a state keeps an average over steps.

    Raises:
        ValueError: the state keeps none.
    """
    if not isinstance(state.carry, Mapping) or AVERAGE not in state.carry:
        raise ValueError(
            f"{who} needs the average of the parameters over steps, which the state does not keep "
            f"at state.carry[{AVERAGE!r}]: make task and state with supervised(..., average=0.999)"
        )


def _to_float32(leaf: jax.Array) -> jax.Array:
    """Copy a leaf to float32 at least: smaller floats would round small changes away."""
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.copy(leaf)
    return jnp.array(leaf, jnp.promote_types(leaf.dtype, jnp.float32), copy=True)
