"""The precision in which a step computes, and the loss scale of float16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from trainer.checks.suggestions import suggest_name
from trainer.phases.buffers.passed_leaves import find_unchanged
from trainer.state import PyTree, TrainState
from trainer.supervised.optimizer_updates import keep_where

PRECISIONS = ("float32", "bfloat16", "float16")
"""Dtypes that a step may compute in; parameters and the optimizer's state keep theirs."""


def require_known(precision: str) -> None:
    """Check that a precision is one of `PRECISIONS`.

    Raises:
        ValueError: it is another.

    >>> require_known("half")
    Traceback (most recent call last):
        ...
    ValueError: precision must be one of float32, bfloat16, float16; got 'half'.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}."
            f"{suggest_name(precision, PRECISIONS)}"
        )


def require_available(precision: str, device: jax.Device) -> None:
    """Check that a device supports a precision; CPUs support all, without a gain in speed.

    Raises:
        ValueError: it does not: bfloat16 on GPUs before compute capability 8.0, float16 on TPUs.
    """
    capability = str(getattr(device, "compute_capability", ""))
    # The capabilities of other vendors are names.
    old = capability.replace(".", "").isdigit() and float(capability) < 8.0
    if precision == "bfloat16" and old:
        raise ValueError(
            f"bfloat16 needs a GPU of compute capability 8.0 or more; {device.device_kind} has "
            f"{capability}: use float16 or float32"
        )
    if precision == "float16" and device.platform == "tpu":
        raise ValueError(f"float16 is not available on {device.device_kind}; use bfloat16")


def cast_floating(tree: PyTree, dtype: Any) -> PyTree:
    """Cast floating leaves to a dtype; all others stay.

    >>> cast_floating({"w": jnp.ones(2), "n": jnp.int32(1)}, jnp.bfloat16)
    {'n': Array(1, dtype=int32...), 'w': Array([1, 1], dtype=bfloat16)}
    """

    def cast(leaf: Any) -> Any:
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf, dtype) if floating else leaf

    return jax.tree.map(cast, tree)


def call_cast(
    forward: Callable[[PyTree, PyTree, bool], tuple[Any, PyTree]],
    params: PyTree,
    model_state: PyTree,
    precision: str,
    *,
    train: bool,
) -> tuple[Any, PyTree]:
    """Call `forward(params, model_state, train)` in a precision; return frozen leaves as they were.

    Cast are the floating parameters, and the leaves of the model state that are frozen: those that
    a pass in training returns unchanged, such as the base under adapters. Batch statistics are not:
    rounded, their running averages would stop to move.

    >>> def forward(params, model_state, train):
    ...     seen = [leaf.dtype.name for leaf in (params, model_state["base"], model_state["mean"])]
    ...     return seen, {**model_state, "mean": model_state["mean"] + train}
    >>> variables = {"base": jnp.ones(2), "mean": jnp.zeros(2)}
    >>> seen, after = call_cast(forward, jnp.ones(2), variables, "bfloat16", train=False)
    >>> seen, after["base"] is variables["base"]
    (['bfloat16', 'bfloat16', 'float32'], True)
    """
    params, small = cast_floating(params, precision), cast_floating(model_state, precision)
    if jax.tree.map(jnp.result_type, small) == jax.tree.map(jnp.result_type, model_state):
        return forward(params, model_state, train)
    frozen = find_unchanged(lambda kept: forward(params, kept, True)[1], model_state)

    def choose(given: PyTree, other: PyTree) -> PyTree:
        return jax.tree.map(lambda keep, x, y: x if keep else y, frozen, given, other)

    outputs, after = forward(params, choose(small, model_state), train)
    return outputs, choose(model_state, after)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """Cast every leaf to the dtype of its counterpart."""
    return jax.tree.map(lambda leaf, model: jnp.asarray(leaf, model.dtype), tree, like)


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
