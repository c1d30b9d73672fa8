"""Averages of parameters over epochs, kept in memory beside the trained ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hooks.base import stateful
from trainer import Hook, TrainState


def average_params(decay: float = 0.9, *, name: str = "average_params") -> Hook:
    """Keep an exponential moving average of the parameters, one update an epoch, bias corrected.

    The average is at `state.memory[name]["params"]`, of the structure of `state.params`; training
    never sees it. `evaluate(phase, params=name)` measures it.

    Args:
        decay: weight of the past at each update, in [0, 1).
        name: of the hook and its memory.

    Raises:
        ValueError: a decay outside [0, 1).

    Source: B. Polyak and A. Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992;
    bias correction as in D. Kingma and J. Ba, Adam, 2015, section 3.

    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> hook = average_params(0.5)
    >>> state = hook(state, {}).replace(params={"w": jnp.zeros(2)})
    >>> hook(state, {}).memory["average_params"]["params"]["w"]    # (0.5 * 1 + 1 * 0) / 1.5
    Array([0.3333333, 0.3333333], dtype=float32)
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1); got {decay}")

    def init(state: TrainState) -> dict[str, Any]:
        return {"params": state.params, "updates": 0}

    def update(
        memory: dict[str, Any], state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[dict[str, Any], TrainState]:
        updates = memory["updates"] + 1
        weight = np.float32((1 - decay) / (1 - decay**updates))
        params = _toward(memory["params"], state.params, weight)
        return {"params": params, "updates": updates}, state

    return stateful(name, init, update)


@jax.jit
def _toward(average: Any, params: Any, weight: jax.Array) -> Any:
    """Move an average toward parameters; a weight of 1 replaces it exactly."""

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(new.dtype, jnp.inexact):
            return new
        return jnp.where(weight == 1, new, old + weight.astype(new.dtype) * (new - old))

    return jax.tree.map(move, average, params)
