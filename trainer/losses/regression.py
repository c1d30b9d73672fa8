"""The regression loss: numbers as targets of each example."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from trainer.checks.pytrees import describe_leaf
from trainer.losses.loss import Loss, require_entry
from trainer.losses.weighing import attach_weights, combine_weights, compute_count_mask


def _check(outputs: jax.ShapeDtypeStruct, batch: Mapping[str, Any]) -> None:
    """Raise ValueError if a host weight is negative or not finite."""
    compute_count_mask(batch, batch["targets"])


def _finalize(means: Mapping[str, float]) -> dict[str, float]:
    return {"root_mean_squared_error": math.sqrt(means["loss"])}


@functools.partial(Loss, check=_check, finalize=_finalize)
def regression(outputs: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Squared and absolute error, averaged over an example's targets.

    `root_mean_squared_error` is computed from the mean of the squared error.

    Args:
        outputs: floating, of the shape of the targets, or with one more axis of size 1.
        batch: `targets`, numbers `[batch, ...]`; optionally `weights`, numbers, how much each
            counts, and `mask`, true or not 0 where they count at all, each `[batch]` or of the
            targets' shape.

    Returns:
        `loss`, the squared error, and `absolute_error`, float32 `[batch]` each; pairs with their
        weights where the batch has weights or a mask.

    Raises:
        ValueError: outputs, weights or mask have another shape or kind.

    >>> values = regression(jnp.array([[1.0], [3.0]]), {"targets": jnp.array([1.0, 1.0])})
    >>> values["loss"].tolist(), values["absolute_error"].tolist()
    ([0.0, 4.0], [0.0, 2.0])
    """
    targets = require_entry("regression", batch, "targets")
    shape = getattr(outputs, "shape", None)
    if shape not in (targets.shape, (*targets.shape, 1)) or not jnp.issubdtype(
        outputs.dtype, jnp.floating
    ):
        raise ValueError(
            f"regression needs floating outputs of the targets' shape {list(targets.shape)} from "
            f"the network; got {describe_leaf(outputs)}"
        )
    error = outputs.reshape(targets.shape).astype(jnp.float32) - targets
    weights = combine_weights("regression", batch, targets.shape, "the targets' shape")
    squared, absolute = error**2, jnp.abs(error)
    return {
        "loss": _average_targets(squared, weights),
        "absolute_error": _average_targets(absolute, weights),
    }


def _average_targets(errors: jax.Array, weights: jax.Array | None) -> Any:
    """Average over an example's targets, by their weights."""
    errors = errors.reshape(len(errors), -1)
    if weights is None:
        return jnp.mean(errors, axis=1)
    weights = weights.reshape(errors.shape)
    total = jnp.sum(weights, axis=1)
    summed = jnp.sum(jnp.where(weights > 0, errors, 0) * weights, axis=1)
    return attach_weights(summed / jnp.where(total == 0, 1, total), jnp.mean(weights, axis=1))
