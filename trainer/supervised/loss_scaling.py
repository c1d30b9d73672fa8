"""The loss scale of float16, and skipping steps whose gradients overflow."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from trainer.state import TrainState
from trainer.supervised.gradients import keep_where

INITIAL_LOSS_SCALE = 2.0**15
"""The loss scale at the start."""

GROWTH_INTERVAL = 2000
"""Finite steps after which the loss scale doubles."""

LossScale = dict[str, jax.Array]
"""`scale`, () float32, and `finite_steps`, () int32, the number since it last changed."""


def init_loss_scale() -> LossScale:
    """Return the loss scale at step 0."""
    return {"scale": jnp.float32(INITIAL_LOSS_SCALE), "finite_steps": jnp.zeros((), jnp.int32)}


def update_loss_scale(current: LossScale, finite: jax.Array) -> LossScale:
    """Halve the scale after gradients that are not finite, double it after many that are.

    Args:
        current: the scale with which the gradients were computed.
        finite: () bool, whether all gradients are.

    Source: P. Micikevicius et al., Mixed Precision Training, 2018, section 3.2.

    >>> update_loss_scale(init_loss_scale(), jnp.array(False))["scale"].item()
    16384.0
    """
    steps = jnp.where(finite, current["finite_steps"] + 1, 0)
    grown = steps >= GROWTH_INTERVAL
    factor = jnp.where(finite, jnp.where(grown, 2.0, 1.0), 0.5)
    scale = jnp.clip(current["scale"] * factor, 1.0, 2.0**24)
    return {"scale": scale, "finite_steps": jnp.where(grown, 0, steps)}


def skip_nonfinite(
    before: TrainState, after: TrainState, metrics: dict[str, Any], weighted: jax.Array | None
) -> tuple[TrainState, dict[str, Any]]:
    """Keep the state where gradients overflowed, and update the loss scale.

    The step still counts: it used its data and its random numbers. The norm shows an overflow:
    finite gradients of float16 are too small for the sum of their squares to overflow.
    """
    finite = jnp.isfinite(metrics["grad_norm"])
    scale = before.carry["loss_scale"]
    metrics |= {
        "grad_norm": jnp.where(finite, metrics["grad_norm"], 0),
        "loss_scale": scale["scale"],
        "skipped": 1 - finite.astype(jnp.float32),
    }
    if "clipped" in metrics:
        metrics["clipped"] = jnp.where(finite, metrics["clipped"], 0)
    moved = update_loss_scale(scale, finite)
    if weighted is not None:
        moved = jax.tree.map(lambda new, old: jnp.where(weighted, new, old), moved, scale)
    after = keep_where(~finite, before, after)
    return after.replace(carry={**before.carry, "loss_scale": moved}), metrics
