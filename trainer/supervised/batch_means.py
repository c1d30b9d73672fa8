"""Means of a loss's values over a batch, and the metrics of a step that they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trainer.losses.loss import Loss, evaluate_loss
from trainer.phases.reductions import WEIGHT


class WeightedMean(NamedTuple):
    """The mean of a loss's values over a batch, () each."""

    value: jax.Array
    """0 where no example has a weight."""
    weight: jax.Array | None = None
    """The sum of the examples' weights; None where all weigh the same."""
    total: jax.Array | None = None
    """The sum of the values times their weights; None where all weigh the same."""


def compute_mean(values: Any) -> WeightedMean:
    """Return the mean of a loss's values, and its weight.

    Args:
        values: `[batch]`, or a pair (values, weights) of `[batch]` each.
    """
    if isinstance(values, tuple):
        values, weights = values
        total = jnp.sum(weights, dtype=jnp.float32)
        summed = jnp.sum(jnp.where(weights == 0, 0, values * weights))  # 0 * nan is nan
        return WeightedMean(summed / jnp.where(total == 0, 1, total), total, summed)
    return WeightedMean(jnp.mean(values))


def compute_means(loss: Loss, step: jax.Array, outputs: Any, batch: Any) -> dict[str, WeightedMean]:
    """Return the means of a loss's values at an optimizer step.

    Raises:
        TypeError, ValueError: see `trainer.losses.loss.evaluate_loss`.
    """
    return {name: compute_mean(v) for name, v in evaluate_loss(loss, step, outputs, batch).items()}


def has_weight(means: Mapping[str, WeightedMean]) -> jax.Array | None:
    """Return whether an example of the batch has a weight, () bool; None without weights."""
    weight = means["loss"].weight
    return None if weight is None else weight > 0


def to_metrics(means: Mapping[str, WeightedMean]) -> dict[str, jax.Array]:
    """Return the metrics of a step: means, nan where nothing has a weight, and their weights."""
    metrics: dict[str, jax.Array] = {}
    for name, (value, weight, _) in means.items():
        if weight is None:
            metrics[name] = value
        else:
            metrics[name] = jnp.where(weight > 0, value, jnp.nan)
            metrics[name + WEIGHT] = weight
    return metrics
